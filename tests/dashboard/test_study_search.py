"""The search for a learning rate: rungs of each arm's own, and what a rung without any loss leaves."""

from __future__ import annotations

from dashboard.models import BaseModel, Dataset, Job, Project, State, Study, TrainingRun, User
from tests.dashboard.studies import Table, conclude, end_training, make_arms, make_study

RATES = [1e-4, 5e-4, 1e-3]
TABLE: Table = {
    name: {seed: [0, 1, 1, 0] for seed in (1, 2, 3)} for name in ("base", "efficient", "quality", "mlp")
}


def first_queued(study: Study) -> Job:
    job = study.jobs().filter(state=State.QUEUED).earliest("pk")
    assert isinstance(job, Job)
    return job


def trials(study: Study) -> set[tuple[str, int | None, int]]:
    """(arm, rung, how many rates)."""
    counts: dict[tuple[str, int | None], int] = {}
    for run in study.runs().exclude(rung=None):
        key = (str(run.study_arm), run.rung)
        counts[key] = counts.get(key, 0) + 1
    return {(*key, count) for key, count in counts.items()}


def test_the_better_half_of_the_rates_goes_on(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = conclude(make_study(project, dataset, base_model, learning_rates=RATES), TABLE)
    assert study.state == "succeeded"
    assert trials(study) == {(name, rung, 3 - rung) for name in ("efficient", "quality") for rung in (0, 1)}


def test_an_arm_that_comes_while_others_search_begins_with_the_first_rung(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, learning_rates=RATES)
    end_training(first_queued(study))
    study.advance()
    study.add_arms(make_arms("mlp"), ed)
    study = conclude(Study.objects.get(pk=study.pk), TABLE)
    assert study.state == "succeeded"
    arms = ("efficient", "quality", "mlp")
    assert trials(study) == {(name, rung, 3 - rung) for name in arms for rung in (0, 1)}
    assert {arm.learning_rate for arm in study.arms.all()} == {RATES[0]}
    assert len(study.result["comparisons"]) == 2


def test_where_the_last_rung_came_to_nothing_the_rung_before_decides(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
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
