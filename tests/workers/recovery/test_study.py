"""Studies from plan to verdict, with real trainings and evaluations of a tiny model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dashboard.models import (
    ArmPlan,
    BaseModel,
    Dataset,
    DatasetVersion,
    Evaluation,
    Job,
    Project,
    ScoringTime,
    State,
    Study,
    TargetModuleConfig,
    User,
)
from dashboard.models.studies.added_seeds import add_seeds
from dashboard.models.studies.launch import launch_study
from dashboard.models.studies.results.verdict_sentence import verdict_sentence
from workers.contract.hyperparameters import Hyperparameters

WorkOff = Callable[[str], Job]


def arm(slug: str, **settings: object) -> ArmPlan:
    """Plan an arm of a few steps with a preset."""
    learn = {"r": 4, "max_steps": 4, "max_length": 64, "learning_rate": 1e-2} | settings
    return ArmPlan(slug, TargetModuleConfig.objects.get(slug=slug), Hyperparameters(**learn))  # type: ignore[arg-type]


@pytest.fixture
def launch(project: Project, ed: User, real_base: BaseModel, real_dataset: Dataset) -> Callable[..., Study]:
    version = real_dataset.newest_ready()
    assert isinstance(version, DatasetVersion)

    def start(**plan: object) -> Study:
        values: dict[str, object] = {
            "arms": [arm("efficient"), arm("quality")],
            "seeds": [1, 2, 3],
            "name": "Placement",
        }
        return launch_study(
            project=project,
            by=ed,
            dataset_version=version,
            base_model=real_base,
            **values | plan,  # type: ignore[arg-type]
        )

    return start


def finish(study: Study, work_off: WorkOff) -> Study:
    """Run all jobs of the study."""
    for _round in range(30):
        waiting = Job.objects.filter(state=State.QUEUED, queue="gpu").exists()
        if not waiting:
            break
        work_off("gpu")
        study.advance()
    return Study.objects.get(pk=study.pk)


# `tests/e2e/test_study.py` goes the same way in a browser, with one seed.
@pytest.mark.proof
@pytest.mark.slow
def test_study_runs_from_plan_to_verdict(launch: Callable[..., Study], work_off: WorkOff) -> None:
    study = launch(seeds=[1])
    assert study.state == "queued"
    study = finish(study, work_off)
    first = set(study.runs().values_list("pk", flat=True))
    add_seeds(study, [2, 3])
    assert study.state == "running"
    assert [job.training_runs.count() for job in study.jobs().filter(kind=Job.Kind.TRAIN)] == [2, 2, 2], (
        "one job per seed, all arms in it"
    )
    study = finish(study, work_off)
    assert study.state == "succeeded"
    assert first < set(study.runs().values_list("pk", flat=True)), "finished runs are used again"
    assert study.runs().count() == 6
    result = study.result
    assert [one.name for one in result.arms] == ["efficient", "quality"]
    assert all(one.seeds == [1, 2, 3] for one in result.arms)
    (comparison,) = result.comparisons
    assert (comparison.arm, comparison.reference) == ("efficient", "quality")
    assert comparison.low <= comparison.difference <= comparison.high
    assert verdict_sentence(study)
    assert Evaluation.objects.active_base_of(study).count() == 1, "the base is scored once"
    assert Evaluation.objects.filter(subject="adapter").count() == 6
    times = ScoringTime.objects.all()
    assert len(times) == 3, "each evaluation job calibrates the next forecast"
    assert all(one.seconds > 0 < one.estimated_seconds for one in times)


@pytest.mark.slow
def test_learning_rate_search_chooses_one_per_arm(launch: Callable[..., Study], work_off: WorkOff) -> None:
    study = launch(learning_rates=[1e-7, 1e-2, 2e-2], seeds=[5])
    for _rung in range(2):
        work_off("gpu")
        study.advance()
    for one in study.arms.all():
        assert one.learning_rate in (1e-2, 2e-2), "1e-7 is too low to learn in two steps"
        assert [len(one._rung(rung)) for rung in (0, 1)] == [3, 2]
        (run,) = one.final_runs()
        assert run.hyperparameters["learning_rate"] == one.learning_rate
