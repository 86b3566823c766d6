"""Re-evaluation of a study."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, Evaluation, Job, Project, State, Study, User
from dashboard.models.studies.re_evaluation import ReevaluationRefused, reevaluate, runs_to_evaluate
from tests.conftest import finish
from tests.dashboard.studies.factories import Table, conclude, end_evaluation, end_training, make_study

ROWS = [0, 1, 1, 0, 1, 1, 0, 1]
TABLE: Table = {
    "base": {0: [0] * 8},
    "efficient": {1: ROWS, 2: ROWS},
    "quality": {1: [1] * 8, 2: ROWS},
}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Queued: two arms, two seeds."""
    return make_study(project, dataset, base_model, by=ed, seeds=[1, 2])


def train(study: Study) -> None:
    for job in study.jobs().filter(kind=Job.Kind.TRAIN, state=State.QUEUED):
        end_training(job)
    study.advance()


def queued_evaluations(study: Study) -> list[Job]:
    """Return the queued evaluation jobs, oldest first."""
    return list(study.jobs().filter(kind=Job.Kind.EVALUATE, state=State.QUEUED).order_by("pk"))


def with_failed_evaluation(study: Study) -> Study:
    """End the study with a failed evaluation of the first seed and the base model."""
    train(study)
    first, second = queued_evaluations(study)
    finish(first, State.FAILED, error_code="worker_lost", error_message="It never came to its end.")
    end_evaluation(second, TABLE, study.metric)
    study.advance()
    return Study.objects.get(pk=study.pk)


def test_only_missing_evaluations_are_queued(study: Study, mara: User) -> None:
    study = with_failed_evaluation(study)
    assert (study.state, study.result.base) == ("succeeded", None)
    reevaluate(study, mara)
    (job,) = queued_evaluations(study)
    asked = [(one.subject, one.run.seed, one.run.study_arm.name) for one in job.evaluations.all()]  # type: ignore[union-attr]
    assert sorted(asked) == [("adapter", 1, "efficient"), ("adapter", 1, "quality"), ("base", 1, "efficient")]
    assert (job.created_by, job.spec) == (mara, study.jobs().get(state=State.FAILED).spec)


def test_verdict_equals_that_of_an_undisturbed_study(
    study: Study, project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = with_failed_evaluation(study)
    reevaluate(study, ed)
    assert Study.objects.get(pk=study.pk).state == State.RUNNING
    mended = conclude(study, TABLE)
    whole = conclude(make_study(project, dataset, base_model, by=ed, seeds=[1, 2]), TABLE)
    assert mended.result == whole.result
    assert mended.state == State.SUCCEEDED
    assert not runs_to_evaluate(mended)
    assert not mended.additions


def test_a_study_without_any_scores_gets_a_verdict(study: Study, ed: User) -> None:
    train(study)
    for job in queued_evaluations(study):
        job.request_cancel(ed)
    study.advance()
    study = Study.objects.get(pk=study.pk)
    assert study.state == State.FAILED
    reevaluate(study, ed)
    assert len(queued_evaluations(study)) == 2
    assert sum(job.evaluations.filter(subject="base").count() for job in queued_evaluations(study)) == 1
    assert conclude(study, TABLE).state == State.SUCCEEDED


def test_single_run_is_evaluated_with_the_settings_of_the_study(study: Study, ed: User) -> None:
    study = with_failed_evaluation(study)
    run = runs_to_evaluate(study)[0]
    reevaluate(run, ed)
    (job,) = queued_evaluations(study)
    assert {one.run_id for one in job.evaluations.filter(subject="adapter")} == {run.pk}
    assert job.evaluations.filter(subject="base").exists()
    assert (job.spec["max_rows"], job.spec["metric"]) == (study.test_rows, study.metric)
    assert Study.objects.get(pk=study.pk).finished_at is None


def test_cancelled_study_is_evaluated_without_training(study: Study, ed: User) -> None:
    end_training(study.jobs().order_by("pk")[0])
    study.request_cancel(ed)
    study = Study.objects.get(pk=study.pk)
    assert (study.state, len(runs_to_evaluate(study))) == (State.CANCELLED, 2)
    reevaluate(study, ed)
    assert Study.objects.get(pk=study.pk).state == State.RUNNING
    study = conclude(study, TABLE)
    assert (study.state, [arm.seeds for arm in study.result.arms]) == ("succeeded", [[1], [1]])
    assert not study.jobs().exclude(state__in=[State.SUCCEEDED, State.CANCELLED]).exists()


def test_a_re_evaluated_study_can_be_cancelled_again(client: Client, study: Study, ed: User) -> None:
    end_training(study.jobs().order_by("pk")[0])
    study.request_cancel(ed)
    reevaluate(Study.objects.get(pk=study.pk), ed)
    client.force_login(ed)
    assert reverse("study-cancel", args=[study.pk]) in client.get(study.get_absolute_url()).content.decode()
    client.post(reverse("study-cancel", args=[study.pk]))
    assert not queued_evaluations(study)
    assert Study.objects.get(pk=study.pk).state == State.CANCELLED


def test_evaluations_to_come_are_refused(study: Study, ed: User) -> None:
    end_training(study.jobs().order_by("pk")[0])
    study.advance()
    assert not runs_to_evaluate(Study.objects.get(pk=study.pk))
    with pytest.raises(ReevaluationRefused):
        reevaluate(study, ed)


def test_missing_base_evaluation_is_queued(study: Study, ed: User) -> None:
    study = conclude(study, TABLE)
    base = Evaluation.objects.get(subject="base")
    Job.objects.filter(pk=base.job_id).update(state=State.FAILED)
    others = Job.objects.create(
        kind="evaluate", queue="gpu", spec={}, state=State.SUCCEEDED, finished_at="2026-01-01T00:00Z"
    )
    Evaluation.objects.filter(job=base.job, subject="adapter").update(job=others)
    reevaluate(study, ed)
    (job,) = queued_evaluations(study)
    assert sorted(job.evaluations.values_list("subject", flat=True)) == ["adapter", "base"]


def test_expected_time_is_reserved(study: Study, ed: User) -> None:
    study = with_failed_evaluation(study)
    reevaluate(study, ed)
    study = Study.objects.with_facts().get(pk=study.pk)
    assert study.remaining_seconds == pytest.approx(study.forecast["scoring"]["expected"] / 2)
