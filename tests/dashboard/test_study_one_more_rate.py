"""One more learning rate: where an arm's lies at the edge of what was tried, a value beyond it is tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.forms.study_results import DecisionForm
from dashboard.models import (
    ApiToken,
    BaseModel,
    ComputeBudget,
    Dataset,
    Evaluation,
    Job,
    OverBudget,
    Project,
    State,
    Study,
    StudyArm,
    TrainingRun,
    User,
)
from dashboard.models.study_export import whole
from dashboard.models.study_words import later, unmeasured
from tests.conftest import finish
from tests.dashboard.studies import Table, end_evaluation, end_training, make_study
from workers.errors import SpecError

RATES = [1e-4, 2e-4, 4e-4]
HALF: Table = {name: {seed: [0, 1] for seed in (1, 2, 3)} for name in ("base", "efficient", "quality")}
# After a change of rate Efficient is right throughout.
BETTER: Table = {**HALF, "efficient": {seed: [1, 1] for seed in (1, 2, 3)}}


def best_at(efficient: float, quality: float = 2e-4) -> Callable[[TrainingRun], float]:
    """Held-out loss with its lowest value at one rate for each arm."""
    lowest = {"efficient": efficient, "quality": quality}
    return lambda run: 1 + abs(run.hyperparameters["learning_rate"] - lowest[str(run.study_arm)])


def lead(study: Study, table: Table, loss: Callable[[TrainingRun], float]) -> Study:
    """To the end of the study, with the losses of `loss` where rates are tried."""
    for _round in range(30):
        job = study.jobs().filter(state=State.QUEUED).order_by("pk").first()
        if job is None:
            break
        if job.kind == Job.Kind.EVALUATE:
            end_evaluation(job, table, study.metric)
        else:
            for run in job.training_runs.exclude(rung=None):
                run.end(TrainingRun.Outcome.SUCCEEDED, step=5, measured={"validation_loss": loss(run)})
            end_training(job)
        study.advance()
    return Study.objects.get(pk=study.pk)


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Finished: the rate of Efficient lies at the upper edge, that of Quality inside."""
    queued = make_study(project, dataset, base_model, by=ed, learning_rates=RATES, margin=0.1)
    return lead(queued, HALF, best_at(1.0))


def arm_of(study: Study, name: str = "efficient") -> StudyArm:
    return Study.objects.get(pk=study.pk).arms.get(name=name)


def press(client: Client, study: Study, rate: float | str = 8e-4, name: str = "efficient") -> Any:
    address = reverse("study-one-more-rate", args=[study.pk])
    return client.post(address, {"arm": name, "rate": rate}, follow=True)


def test_a_rate_inside_of_the_grid_is_bracketed_and_one_at_its_edge_is_not(study: Study) -> None:
    found = {arm.name: (arm.learning_rate, arm.is_bracketed, arm.next_rate) for arm in study.arms.all()}
    assert found == {"efficient": (4e-4, False, 8e-4), "quality": (2e-4, True, None)}


def test_below_the_lowest_rate_the_next_one_is_as_far_away_downwards(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = lead(make_study(project, dataset, base_model, learning_rates=RATES), HALF, best_at(0.0))
    assert arm_of(study).next_rate == 5e-5


def test_of_two_rates_each_lies_at_an_edge(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    study = lead(make_study(project, dataset, base_model, learning_rates=[1e-4, 1e-3]), HALF, best_at(1.0))
    assert (arm_of(study).is_bracketed, arm_of(study).next_rate) == (False, 1e-2)


def test_the_page_says_so_and_offers_one_button(client: Client, ed: User, vera: User, study: Study) -> None:
    client.force_login(ed)
    page = client.get(study.get_absolute_url()).content.decode()
    assert "not bracketed" in page
    assert page.count("Try one more value") == 1
    assert "Try one more value: 0.0008" in page
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    assert "not bracketed" in page
    assert "Try one more value" not in page


def test_it_queues_one_short_run_of_this_arm_and_nothing_else(client: Client, ed: User, study: Study) -> None:
    before = set(study.runs().values_list("pk", flat=True))
    client.force_login(ed)
    press(client, study)
    (run,) = study.runs().exclude(pk__in=before)
    assert (str(run.study_arm), run.rung, run.hyperparameters["learning_rate"]) == ("efficient", 1, 8e-4)
    like = study.runs().filter(rung=1, study_arm__name="efficient").first()
    assert like
    assert run.hyperparameters["max_steps"] == like.hyperparameters["max_steps"], "as long as those before"
    page = client.get(study.get_absolute_url()).content.decode()
    assert "0.0008 is being tried" in page
    assert "Try one more value" not in page


def test_a_value_that_does_better_on_validation_has_the_seeds_of_this_arm_trained_anew(
    client: Client, ed: User, study: Study
) -> None:
    client.force_login(ed)
    press(client, study)
    known = set(study.runs().values_list("pk", flat=True))
    study = lead(Study.objects.get(pk=study.pk), BETTER, best_at(8e-4))
    fresh = study.runs().exclude(pk__in=known).order_by("pk")
    assert [(str(run.study_arm), run.seed, run.hyperparameters["learning_rate"]) for run in fresh] == [
        ("efficient", seed, 8e-4) for seed in (1, 2, 3)
    ]
    assert arm_of(study).learning_rate == 8e-4
    shown = {arm["name"]: arm["metric"]["mean"] for arm in study.result["arms"]}
    assert shown == {"efficient": 1.0, "quality": 0.5}, "the scores of the earlier rate count no more"
    assert Evaluation.objects.of_base(study).count() == 1, "the base is not scored again"


def test_what_the_value_replaced_is_in_no_file_and_cannot_be_decided_on(
    client: Client, ed: User, study: Study
) -> None:
    old = {run.pk for run in study.final_runs() if str(run.study_arm) == "efficient"}
    client.force_login(ed)
    press(client, study)
    study = lead(Study.objects.get(pk=study.pk), BETTER, best_at(8e-4))
    found = whole(study)
    assert not old & {setting["run"] for setting in found["settings"]}
    assert {score["value"] for score in found["scores"] if score["arm"] == "efficient"} == {1.0}
    offered = {adapter.run_id for adapter in DecisionForm(study).fields["adapter"].queryset}  # type: ignore[attr-defined]
    assert offered == {run.pk for run in study.final_runs()}
    assert not old & offered


def test_a_value_that_does_worse_leaves_everything_as_it_was(client: Client, ed: User, study: Study) -> None:
    before, runs = study.result, study.runs().filter(rung=None).count()
    client.force_login(ed)
    press(client, study)
    study = lead(Study.objects.get(pk=study.pk), HALF, lambda _run: 9.0)
    assert arm_of(study).learning_rate == 4e-4
    assert arm_of(study).is_bracketed, "values on both sides do worse now"
    assert study.runs().filter(rung=None).count() == runs
    assert study.result == before
    assert study.state == "succeeded"


def test_a_value_that_diverges_brackets_too(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    press(client, study)
    job = study.jobs().get(state=State.QUEUED)
    job.training_runs.get().end("failed", step=1, code="diverged", message="Lost.")
    finish(job, State.FAILED)
    study.advance()
    study = Study.objects.get(pk=study.pk)
    assert (study.state, arm_of(study).is_bracketed, arm_of(study).learning_rate) == ("succeeded", True, 4e-4)


def test_a_run_that_was_lost_for_another_reason_may_be_tried_again(
    client: Client, ed: User, study: Study
) -> None:
    client.force_login(ed)
    for _press in range(2):
        press(client, study)
        finish(study.jobs().get(state=State.QUEUED), State.FAILED)
        Study.objects.get(pk=study.pk).advance()
        assert arm_of(study).next_rate == 8e-4
    assert study.runs().filter(rung=1, study_arm__name="efficient").count() == 4


def test_pressed_twice_it_tries_one_value_once(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    for _click in range(2):
        page = press(client, study).content.decode()
        assert "notice-error" not in page.split('id="notices"')[0]
    assert study.runs().filter(job__state="queued").count() == 1
    study = lead(Study.objects.get(pk=study.pk), BETTER, best_at(8e-4))
    press(client, study)
    assert not study.runs().filter(job__state="queued").exists(), "a late second click neither"


def test_while_the_seeds_train_it_may_be_tried_before_any_score_is_known(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, learning_rates=RATES)
    loss = best_at(1.0)
    while study.runs().filter(rung=None).count() == 0:
        job = study.jobs().get(state=State.QUEUED)
        for run in job.training_runs.all():
            run.end(TrainingRun.Outcome.SUCCEEDED, step=5, measured={"validation_loss": loss(run)})
        finish(job)
        study.advance()
    study.try_rate("efficient", ed)
    study = lead(Study.objects.get(pk=study.pk), BETTER, best_at(8e-4))
    assert study.state == "succeeded"
    assert {run.hyperparameters["learning_rate"] for run in arm_of(study).final_runs()} == {8e-4}
    scored = Evaluation.objects.filter(subject="adapter", run__study_arm__name="efficient")
    assert scored.count() == 3, "seeds with the earlier rate are not scored"
    assert "before any result was known" in later(study)[0]


def test_seeds_that_are_stopped_on_their_way_leave_the_earlier_result(
    client: Client, ed: User, study: Study
) -> None:
    client.force_login(ed)
    press(client, study)
    study = Study.objects.get(pk=study.pk)
    (run,) = study.jobs().get(state=State.QUEUED).training_runs.all()
    run.end(TrainingRun.Outcome.SUCCEEDED, step=5, measured={"validation_loss": 0.5})
    finish(run.job)  # type: ignore[arg-type]
    study.advance()
    assert arm_of(study).learning_rate == 8e-4
    study.request_cancel(ed)
    study = Study.objects.get(pk=study.pk)
    assert (study.state, arm_of(study).learning_rate) == ("succeeded", 4e-4)
    assert {arm["name"]: len(arm["seeds"]) for arm in study.result["arms"]} == {"efficient": 3, "quality": 3}
    assert not arm_of(study).is_bracketed
    assert arm_of(study).next_rate is None


def test_page_and_report_say_that_it_was_tried_later(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    press(client, study)
    study = lead(Study.objects.get(pk=study.pk), BETTER, best_at(8e-4))
    for name in ("study-detail", "study-report"):
        page = client.get(reverse(name, args=[study.pk])).content.decode()
        assert "when a first result was known: 0.0008 for efficient" in page
        assert "chosen on validation rows" in page


def test_what_is_not_bracketed_is_said_among_what_was_not_measured(study: Study) -> None:
    (said,) = [text for text in unmeasured(study) if "bracketed" in text]
    assert "efficient" in said
    assert "quality" not in said


def test_the_month_must_have_room_for_it(project: Project, ed: User, mara: User, study: Study) -> None:
    ComputeBudget.objects.change(project, 0, mara)
    with pytest.raises(OverBudget):
        study.try_rate("efficient", ed)
    assert not study.runs().filter(job__state="queued").exists()
    assert Study.objects.get(pk=study.pk).finished_at


@pytest.mark.parametrize(
    ("name", "rate", "words"),
    [
        ("quality", None, "lies inside of what was tried"),
        ("mlp", None, "is no arm of this study"),
        ("efficient", 1.6e-3, "The next learning rate of `efficient` is 0.0008"),
    ],
)
def test_it_is_refused_where_it_does_not_apply(
    ed: User, study: Study, name: str, rate: float | None, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        study.try_rate(name, ed, rate=rate)
    assert not study.runs().filter(job__state="queued").exists()


def test_a_study_that_looks_for_no_rates_has_no_edge(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed)
    with pytest.raises(SpecError, match="looks for no learning rates"):
        study.try_rate("efficient", ed)


def test_beyond_the_limit_of_rates_there_is_nothing_to_try(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = lead(make_study(project, dataset, base_model, learning_rates=[0.01, 0.1]), HALF, best_at(1.0))
    assert "No learning rate beyond 0.1" in arm_of(study).no_next_rate


@pytest.mark.parametrize("rate", ["", "fast", "nan", "1e999"])
def test_a_rate_that_is_no_number_is_refused_in_words(
    client: Client, ed: User, study: Study, rate: str
) -> None:
    client.force_login(ed)
    answer = press(client, study, rate)
    assert answer.status_code == 200
    assert "notice-error" in answer.content.decode()
    assert not study.runs().filter(job__state="queued").exists()


def test_an_arm_that_the_study_does_not_have_is_refused_in_words(
    client: Client, ed: User, study: Study
) -> None:
    client.force_login(ed)
    assert "is no arm of this study" in press(client, study, name="other").content.decode().replace(
        "</code>", "`"
    ).replace("<code>", "`")


def test_it_refuses_a_viewer(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    assert press(client, study).status_code == 403


def test_it_hides_the_study_from_an_outsider(client: Client, otto: User, study: Study) -> None:
    client.force_login(otto)
    assert press(client, study).status_code == 404


# Over the API


@pytest.fixture
def call(client: Client, project: Project) -> Callable[..., Any]:
    """One more rate, asked for by a program of somebody."""

    def post(study: Study, by: User, body: dict[str, Any], *, home: Project = project, **headers: str) -> Any:
        secret = ApiToken.issue(home, by, "tests")[1]
        return client.post(
            f"/api/v1/studies/{study.pk}/rates",
            body,
            content_type="application/json",
            headers={"Authorization": f"Bearer {secret}", **headers},
        )

    return post


def test_the_api_tells_what_was_tried_and_what_could_be(
    call: Callable[..., Any], ed: User, study: Study
) -> None:
    answer = call(study, ed, {"arm": "efficient"})
    assert answer.status_code == 202
    arms = {arm["name"]: arm for arm in answer.json()["arms"]}
    assert arms["quality"]["learning_rates_tried"] == RATES
    assert (arms["quality"]["bracketed"], arms["quality"]["next_learning_rate"]) == (True, None)
    assert arms["efficient"]["bracketed"] is False
    assert answer.json()["additions"][-1]["rates"] == {"efficient": 8e-4}
    assert study.runs().filter(job__state="queued").count() == 1


def test_the_api_refuses_where_it_does_not_apply(call: Callable[..., Any], ed: User, study: Study) -> None:
    answer = call(study, ed, {"arm": "quality"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "nothing_to_try")
    assert "lies inside of what was tried" in answer.json()["error"]["message"]
    assert call(study, ed, {"arm": "mlp"}).status_code == 422
    assert call(study, ed, {"arm": "efficient", "learning_rate": 0.05}).status_code == 422
    assert call(study, ed, {}).status_code == 422


def test_the_api_called_twice_tries_it_once(call: Callable[..., Any], ed: User, study: Study) -> None:
    for _call in range(2):
        assert call(study, ed, {"arm": "efficient", "learning_rate": 8e-4}).status_code == 202
    assert study.runs().filter(job__state="queued").count() == 1
    lead(Study.objects.get(pk=study.pk), BETTER, best_at(8e-4))
    answers = [call(study, ed, {"arm": "efficient"}, **{"Idempotency-Key": "more"}) for _call in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert study.runs().filter(job__state="queued").count() == 1


def test_the_api_refuses_a_viewer_and_hides_it_from_outsiders(
    call: Callable[..., Any], vera: User, otto: User, other_project: Project, study: Study
) -> None:
    assert call(study, vera, {"arm": "efficient"}).status_code == 403
    assert call(study, otto, {"arm": "efficient"}, home=other_project).status_code == 404
    assert not study.runs().filter(job__state="queued").exists()
