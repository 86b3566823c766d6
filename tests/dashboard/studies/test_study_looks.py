"""Studies that stop when they know: looks between seeds, and the hours allowed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F
from django.test import Client

from dashboard.models import (
    BaseModel,
    Dataset,
    EvaluationItem,
    Job,
    JobEvent,
    Project,
    State,
    Study,
    User,
)
from dashboard.models.studies.added_seeds import add_seeds
from dashboard.models.studies.looks import ending_of, look_sentence
from dashboard.models.studies.results.limits import added_seeds
from tests.conftest import rewrite
from tests.dashboard.studies.factories import Table, conclude, end_evaluation, end_training, make_study
from workers.contract.errors import SpecError

SEEDS = (1, 2, 3, 4, 5, 6, 7)
GOOD = [1] * 40 + [0] * 20
# Of 60 rows mlp answers 10, quality 40, and efficient 36: too few rows to tell by how much it is worse.
TABLE: Table = {
    "base": {0: [1] * 5 + [0] * 55},
    "efficient": {seed: [1] * 33 + [0] * 24 + [1] * 3 for seed in SEEDS},
    "mlp": {seed: [1] * 10 + [0] * 50 for seed in SEEDS},
    "quality": dict.fromkeys(SEEDS, GOOD),
}
CLEAR: Table = {**TABLE, "efficient": {seed: [1] * 12 + [0] * 48 for seed in SEEDS}}
ADDRESS = "/api/v1/studies"


def launch(project: Project, dataset: Dataset, base_model: BaseModel, by: User, **plan: object) -> Study:
    slugs = ("efficient", "mlp", "quality")
    return make_study(
        project, dataset, base_model, by=by, slugs=slugs, **{"seeds": SEEDS[:5], "margin": 0.06, **plan}
    )


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Queued: three arms, five seeds, so looks after three and five."""
    return launch(project, dataset, base_model, ed)


def fetched(study: Study) -> Study:
    return Study.objects.with_facts().get(pk=study.pk)


def work(study: Study, table: Table, *, seeds: int) -> Study:
    """Train and score so many seeds, and advance the study as the workers would."""
    while job := study.jobs().filter(state=State.QUEUED).order_by("pk").first():
        if len(fetched(study).begun_seeds) > seeds:
            break
        if job.kind == Job.Kind.TRAIN:
            end_training(job)
        else:
            end_evaluation(job, table, study.metric)
        fetched(study).advance()
    return fetched(study)


def score_first_look(study: Study, table: Table = TABLE) -> Study:
    """End the jobs of the first three seeds; the worker dies before it advances the study a last time."""
    for job in study.jobs():
        end_training(job)
    study.advance()
    for job in study.jobs().filter(kind=Job.Kind.EVALUATE):
        end_evaluation(job, table, study.metric)
    return fetched(study)


def seeds_of(study: Study) -> dict[str, list[int]]:
    """Return the seeds with which each arm was trained."""
    return {arm.name: [run.seed for run in arm.final_runs()] for arm in fetched(study).arms.all()}


def test_seeds_up_to_the_first_look_are_queued_together(study: Study) -> None:
    assert seeds_of(study) == {"efficient": [1, 2, 3], "mlp": [1, 2, 3], "quality": [1, 2, 3]}
    assert study.look_sizes == [3, 5]


def test_decided_arm_gets_no_further_seeds(study: Study) -> None:
    study = conclude(study, TABLE)
    assert seeds_of(study) == {"efficient": [1, 2, 3, 4, 5], "mlp": [1, 2, 3], "quality": [1, 2, 3, 4, 5]}
    found = {one.arm: one for one in study.result.comparisons}
    assert (found["mlp"].outcome, found["mlp"].look, found["mlp"].seeds) == ("inferior", 1, [1, 2, 3])
    assert (found["efficient"].look, found["efficient"].seeds) == (2, [1, 2, 3, 4, 5])
    assert look_sentence(study) == "Look 2 of 2; 2 of 15 runs were not needed."


def test_study_ends_when_every_arm_is_decided(study: Study, api: Client) -> None:
    study = conclude(study, CLEAR)
    assert study.state == State.SUCCEEDED
    assert set(map(tuple, seeds_of(study).values())) == {(1, 2, 3)}
    assert look_sentence(study) == "Decided at look 1 of 2; 6 of 15 runs were not needed."
    answer = api.get(f"{ADDRESS}/{study.pk}").json()
    assert answer["ending"] == {
        "reason": "decided",
        "look": 1,
        "looks": 2,
        "seeds": 3,
        "runs_left_out": 6,
        "runs": 15,
    }
    assert api.get(f"{ADDRESS}/{study.pk}/export").json()["study"]["ending"] == answer["ending"]
    assert study.remaining_seconds == 0


def test_scheduler_killed_before_the_next_seeds_queues_them_later(study: Study) -> None:
    study = score_first_look(study)
    assert seeds_of(study)["quality"] == [1, 2, 3]
    for _again in range(2):
        fetched(study).advance()
    assert seeds_of(study) == {"efficient": [1, 2, 3, 4, 5], "mlp": [1, 2, 3], "quality": [1, 2, 3, 4, 5]}


def test_look_waits_for_every_score(study: Study) -> None:
    for job in study.jobs():
        end_training(job)
    study.advance()
    first, *_others = study.jobs().filter(kind=Job.Kind.EVALUATE)
    end_evaluation(first, TABLE, study.metric)
    study.advance()
    assert seeds_of(study)["quality"] == [1, 2, 3]
    assert not study.is_over


@pytest.mark.django_db(transaction=True)
def test_concurrent_advances_queue_each_seed_once(study: Study) -> None:
    score_first_look(study)

    def advance(_number: int) -> None:
        try:
            Study.objects.get(pk=study.pk).advance()
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(advance, range(4)))
    assert seeds_of(study) == {"efficient": [1, 2, 3, 4, 5], "mlp": [1, 2, 3], "quality": [1, 2, 3, 4, 5]}


def test_only_needs_no_further_seeds_is_shown_before_the_end(
    study: Study, api: Client, client: Client, ed: User
) -> None:
    study = work(study, TABLE, seeds=3)
    client.force_login(ed)
    page = client.get(study.get_absolute_url()).content.decode()
    assert page.count("Needs no further seeds") == 1
    answer = api.get(f"{ADDRESS}/{study.pk}").json()
    assert {arm["name"]: arm["needs_no_seeds"] for arm in answer["arms"]} == {
        "efficient": False,
        "mlp": True,
        "quality": False,
    }
    export = api.get(f"{ADDRESS}/{study.pk}/export").json()
    assert (answer["comparisons"], answer["ending"], answer["verdict"]) == ([], None, None)
    assert (export["scores"], export["study"]) == ([], answer)
    for hidden in ("inferior", "p_adjusted", "contrast"):
        assert hidden not in page + str(answer) + str(export)


def test_decided_arm_keeps_its_verdict_if_a_score_changes_later(study: Study) -> None:
    study = work(study, TABLE, seeds=3)
    EvaluationItem.objects.filter(
        evaluation__run__study_arm__name="mlp", evaluation__run__spec__hyperparameters__seed=2
    ).update(scores={"exact_match": 1})
    study = conclude(study, TABLE)
    found = {one.arm: one for one in study.result.comparisons}["mlp"]
    assert (found.outcome, round(found.difference, 3)) == ("inferior", -0.5)


def test_two_seeds_have_no_look_before_the_end(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = conclude(launch(project, dataset, base_model, ed, seeds=[1, 2]), CLEAR)
    assert (study.look_sizes, ending_of(study)) == ([2], None)
    assert {one.outcome for one in study.result.comparisons} == {"indicative_only"}


# Time


def spend_hours(study: Study, hours: float) -> None:
    """Let each job of the study have held its device for so long."""
    claims = JobEvent.objects.filter(job__in=study.jobs(), event="claim")
    rewrite(claims, created_at=F("created_at") - timedelta(hours=hours))


def test_no_seed_starts_after_the_hours_allowed(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, api: Client
) -> None:
    study = launch(project, dataset, base_model, ed, max_hours=2.0)
    assert seeds_of(study)["quality"] == [1], "each seed waits for the one before"
    study = work(study, TABLE, seeds=1)
    assert seeds_of(study)["quality"] == [1, 2]
    spend_hours(study, 3.0)
    study = conclude(study, TABLE)
    assert study.state == State.SUCCEEDED
    assert set(map(tuple, seeds_of(study).values())) == {(1, 2)}, "the running seed was finished"
    assert look_sentence(study) == (
        "Ended at look 1 of 2, after 2 of 5 seeds, because its time of 2 h was spent; "
        "9 of 15 runs were not started."
    )
    assert api.get(f"{ADDRESS}/{study.pk}").json()["ending"]["reason"] == "time_spent"


def test_unspent_time_ends_nothing(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = conclude(launch(project, dataset, base_model, ed, max_hours=2.0), TABLE)
    assert seeds_of(study)["efficient"] == [1, 2, 3, 4, 5]
    assert seeds_of(study)["mlp"] == [1, 2, 3]


# Added seeds


def test_added_seeds_are_further_looks_of_open_arms(study: Study, ed: User) -> None:
    study = conclude(study, TABLE)
    add_seeds(study, [6, 7], ed)
    study = conclude(study, TABLE)
    assert seeds_of(study) == {"efficient": list(SEEDS), "mlp": [1, 2, 3], "quality": list(SEEDS)}
    assert study.look_sizes == [3, 5, 7]
    assert {one.arm: one.look for one in study.result.comparisons} == {"efficient": 3, "mlp": 1}
    assert "allow for having looked" in added_seeds(study)[0]


def test_added_seeds_take_the_place_of_those_without_time(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = work(launch(project, dataset, base_model, ed, max_hours=2.0), TABLE, seeds=2)
    spend_hours(study, 3.0)
    study = conclude(study, TABLE)
    add_seeds(study, [4, 5], ed)
    study = conclude(study, TABLE)
    assert (study.seeds, study.look_sizes) == ([1, 2, 3, 4, 5], [3, 5])
    assert seeds_of(study)["efficient"] == [1, 2, 3, 4, 5], "what is added after the end has no limit"


def test_no_seeds_are_added_when_every_arm_is_decided(study: Study, ed: User, client: Client) -> None:
    study = conclude(study, CLEAR)
    with pytest.raises(SpecError, match="Every arm is decided"):
        add_seeds(study, [6], ed)
    client.force_login(ed)
    assert "add-seeds" not in client.get(study.get_absolute_url()).content.decode()
