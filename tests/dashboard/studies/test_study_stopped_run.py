"""Limits of a study with stopped runs."""

from __future__ import annotations

import pytest

from dashboard.models import BaseModel, Dataset, Job, Project, Study, TrainingRun, User
from dashboard.models.studies.results.limits import cut_short, unmeasured
from tests.dashboard.studies.factories import TABLE, conclude, end_training, make_study


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Queued: three arms, three seeds."""
    return make_study(project, dataset, base_model, by=ed, slugs=("efficient", "mlp", "quality"), margin=0.06)


def runs_of(study: Study, arm: str) -> list[TrainingRun]:
    return list(study.runs().filter(study_arm__name=arm).order_by("pk"))


def fetched(study: Study) -> Study:
    return Study.objects.with_facts().get(pk=study.pk)


def test_stopped_run_is_named_as_missing(study: Study) -> None:
    runs_of(study, "mlp")[1].end("cancelled", step=0)
    study = conclude(study, TABLE)
    assert study.state == "succeeded"
    assert "Stopped, so without a result: mlp with seed 2." in unmeasured(study)
    seeds = {one.arm: one.seeds for one in study.result.comparisons}
    assert seeds == {"efficient": [1, 2, 3], "mlp": [1, 3]}


def test_run_stopped_early_is_named(study: Study) -> None:
    run = runs_of(study, "quality")[0]
    conclude(study, TABLE)
    TrainingRun.objects.filter(pk=run.pk).update(outcome="stopped_early", ended_step=4)
    (said,) = cut_short(fetched(study))
    assert said == (
        "Stopped after fewer steps than planned, and compared by the best checkpoint: quality with seed 1."
    )


def test_cancelled_study_names_no_single_run(study: Study, ed: User) -> None:
    study.request_cancel(ed)
    assert cut_short(fetched(study)) == []


def test_learning_rate_of_a_stopped_trial_is_not_chosen(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1], learning_rates=[1e-4, 1e-3])
    trials = runs_of(study, "efficient")
    trials[0].end("cancelled", step=0)
    end_training(Job.objects.get(pk=trials[0].job_id))
    fetched(study).advance()
    rates = dict(study.arms.values_list("name", "learning_rate"))
    assert rates["efficient"] == trials[1].hyperparameters["learning_rate"]
    assert study.runs().filter(rung=None).count() == 2, "both arms get their seed"
