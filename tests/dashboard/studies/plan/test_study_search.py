"""The search for a learning rate by successive halving."""

from __future__ import annotations

import pytest

from dashboard.models import BaseModel, Dataset, Job, Project, State, Study, TrainingRun
from dashboard.models.studies.results.export import study_dict
from dashboard.models.studies.results.limits import unmeasured
from tests.dashboard.studies.factories import Table, conclude, end_training, make_study

RATES = [1e-4, 5e-4, 1e-3]
TABLE: Table = {name: {seed: [0, 1, 1, 0] for seed in (1, 2, 3)} for name in ("base", "efficient", "quality")}


def first_queued(study: Study) -> Job:
    job = study.jobs().filter(state=State.QUEUED).earliest("pk")
    assert isinstance(job, Job)
    return job


def trials(study: Study) -> set[tuple[str, int | None, int]]:
    """Return (arm, rung, number of rates)."""
    counts: dict[tuple[str, int | None], int] = {}
    for run in study.runs().exclude(rung=None):
        key = (str(run.study_arm), run.rung)
        counts[key] = counts.get(key, 0) + 1
    return {(*key, count) for key, count in counts.items()}


def test_each_rung_keeps_the_better_half(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    study = conclude(make_study(project, dataset, base_model, learning_rates=RATES), TABLE)
    assert study.state == "succeeded"
    assert trials(study) == {(name, rung, 3 - rung) for name in ("efficient", "quality") for rung in (0, 1)}


@pytest.mark.parametrize(("best", "is_bracketed"), [(1e-4, False), (5e-4, True), (1e-3, False)])
def test_chosen_rate_at_the_edge_is_not_bracketed(
    project: Project, dataset: Dataset, base_model: BaseModel, best: float, is_bracketed: bool
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1], learning_rates=RATES)
    while (job := first_queued(study)).training_runs.exclude(rung=None).exists():
        for run in job.training_runs.all():
            loss = 1 + abs(run.hyperparameters["learning_rate"] - best)
            run.end(TrainingRun.Outcome.SUCCEEDED, step=5, measured={"validation_loss": loss})
        end_training(job)
        study.advance()
    study = conclude(Study.objects.get(pk=study.pk), TABLE)
    arm = study_dict(study)["arms"][0]
    assert (arm["learning_rate"], arm["bracketed"]) == (best, is_bracketed)
    assert any("not bracketed" in text for text in unmeasured(study)) == (not is_bracketed)


def test_rung_without_results_is_ignored(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    study = make_study(project, dataset, base_model, learning_rates=RATES)
    end_training(first_queued(study))
    study.advance()
    last = first_queued(study)
    for run in last.training_runs.filter(study_arm__name="efficient"):
        run.end(TrainingRun.Outcome.FAILED, step=1, code="diverged", message="Lost.")
    end_training(last)
    study.advance()
    study = conclude(Study.objects.get(pk=study.pk), TABLE)
    assert study.arms.get(name="efficient").learning_rate in RATES, "from the grid, not the arm's own"
    assert study.state == "succeeded"
