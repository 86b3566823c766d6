"""A study one run of which a person stops: the others go on, and what it misses is said."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.models import BaseModel, Dataset, Evaluation, Job, Project, State, Study, TrainingRun, User
from dashboard.models.stopping import arms_to_stop, stop_run
from dashboard.models.study_limits import cut_short, unmeasured
from tests.dashboard.studies import conclude, end_training, make_study
from tests.dashboard.test_study_result import TABLE


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Three arms, three seeds; nobody has begun."""
    return make_study(project, dataset, base_model, by=ed, slugs=("efficient", "mlp", "quality"), margin=0.06)


def runs_of(study: Study, arm: str) -> list[TrainingRun]:
    return list(study.runs().filter(study_arm__name=arm).order_by("pk"))


def fetched(study: Study) -> Study:
    return Study.objects.with_facts().get(pk=study.pk)


def test_the_arms_beside_it_and_the_other_seeds_go_on(study: Study, ed: User) -> None:
    stopped = runs_of(study, "mlp")[0]
    job = Job.objects.get(pk=stopped.job_id)
    job.move("claim", attempt=1)
    job.move("progress")
    stop_run(stopped, ed)
    assert (job.read_stop_request(), arms_to_stop(job)) == ("", {1: "cancel"})
    job.interrupt("The worker died.", counts_as_failure=False)
    job.requeue_or_fail()
    end_training(Job.objects.get(pk=job.pk))
    fetched(study).advance()
    scored = Evaluation.objects.filter(subject="adapter").values_list("run__study_arm__name", flat=True)
    assert sorted(scored) == ["efficient", "quality"]
    assert study.runs().count() == 9, "nobody trains it in its place"
    waiting = study.jobs().filter(state=State.QUEUED, kind="train")
    assert [one.training_runs.count() for one in waiting] == [3, 3]


def test_page_and_report_say_which_run_has_no_result(
    client: Client, vera: User, study: Study, ed: User
) -> None:
    stop_run(runs_of(study, "mlp")[1], ed)
    conclude(study, TABLE)
    study = fetched(study)
    assert study.state == "succeeded"
    words = "Stopped, so without a result: mlp with seed 2."
    assert words in unmeasured(study)
    seeds = {one.arm: one.seeds for one in study.result.comparisons}
    assert seeds == {"efficient": [1, 2, 3], "mlp": [1, 3]}
    client.force_login(vera)
    for address in (study.get_absolute_url(), f"{study.get_absolute_url()}report/"):
        assert words in client.get(address).content.decode()


def test_an_arm_each_run_of_which_was_stopped_stays_in_the_table(
    client: Client, vera: User, study: Study, ed: User
) -> None:
    for run in runs_of(study, "mlp"):
        stop_run(run, ed)
    conclude(study, TABLE)
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    assert "Stopped, so it has no result" in page
    assert [one.name for one in fetched(study).result.arms] == ["efficient", "quality"]


def test_it_says_which_run_is_compared_by_fewer_steps(study: Study) -> None:
    run = runs_of(study, "quality")[0]
    conclude(study, TABLE)
    TrainingRun.objects.filter(pk=run.pk).update(outcome="stopped_early", ended_step=4)
    (said,) = cut_short(fetched(study))
    assert said == (
        "Stopped after fewer steps than planned, and compared by the best checkpoint: quality with seed 1."
    )


def test_a_study_that_was_stopped_as_a_whole_names_no_single_run(study: Study, ed: User) -> None:
    study.request_cancel(ed)
    assert cut_short(fetched(study)) == []


def test_a_rate_whose_trial_was_stopped_is_not_chosen(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1], learning_rates=[1e-4, 1e-3])
    trials = runs_of(study, "efficient")
    stop_run(trials[0], ed)
    end_training(Job.objects.get(pk=trials[0].job_id))
    fetched(study).advance()
    rates = dict(study.arms.values_list("name", "learning_rate"))
    assert rates["efficient"] == trials[1].hyperparameters["learning_rate"]
    assert study.runs().filter(rung=None).count() == 2, "both arms get their seed"


def test_the_study_still_stops_whole_jobs(study: Study, ed: User) -> None:
    run = runs_of(study, "mlp")[0]
    job = Job.objects.get(pk=run.job_id)
    job.move("claim", attempt=1)
    job.move("progress")
    stop_run(run, ed)
    study.request_cancel(ed)
    assert job.read_stop_request() == "cancel"
