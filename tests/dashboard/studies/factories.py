"""Studies with chosen scores, without training."""

from __future__ import annotations

from collections.abc import Sequence

from dashboard.models import (
    Adapter,
    ArmPlan,
    BaseModel,
    Dataset,
    DatasetVersion,
    Evaluation,
    Job,
    Project,
    State,
    Study,
    TargetModuleConfig,
    TrainingRun,
    User,
)
from dashboard.models.studies.launch import launch_study
from tests.conftest import finish
from workers.contract.hyperparameters import Hyperparameters

# arm -> seed -> score of each row, and the base's under `base`
Table = dict[str, dict[int, Sequence[float]]]

SEEDS = (1, 2, 3)
ROWS = 60
# Quality answers 40 of 60 rows, efficient the same and mlp only 10 of them.
TABLE: Table = {
    "base": {0: [1] * 5 + [0] * 55},
    "efficient": {seed: [1] * 40 + [0] * 20 for seed in SEEDS},
    "mlp": {seed: [1] * 10 + [0] * 50 for seed in SEEDS},
    "quality": {seed: [1] * 40 + [0] * 20 for seed in SEEDS},
}


def make_arms(*slugs: str, **settings: object) -> list[ArmPlan]:
    """Return presets as arms with short runs."""
    learn = Hyperparameters(**{"r": 4, "max_steps": 10, "max_length": 64, **settings})  # type: ignore[arg-type]
    return [ArmPlan(slug, TargetModuleConfig.objects.get(slug=slug), learn) for slug in slugs]


def make_study(
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    *,
    by: User | None = None,
    slugs: Sequence[str] = ("efficient", "quality"),
    **plan: object,
) -> Study:
    """Launch a study of presets."""
    version = dataset.newest_ready()
    assert isinstance(version, DatasetVersion)
    values: dict[str, object] = {
        "name": "Placement",
        "seeds": [1, 2, 3],
        "metric": "exact_match",
        "margin": 0.02,
        # Scores are made up, so an equal study may have others.
        "reuse": False,
    }
    arms = plan.pop("arms", None) or make_arms(*slugs)
    return launch_study(
        project=project,
        by=by,
        dataset_version=version,
        base_model=base_model,
        arms=arms,  # type: ignore[arg-type]
        **values | plan,  # type: ignore[arg-type]
    )


def end_training(job: Job) -> None:
    """End a training job: final runs get an adapter, search runs a validation loss."""
    for run in job.training_runs.filter(outcome=""):
        measured = {"seconds": 12.0, "peak_memory_bytes": 5e8}
        if run.rung is None:
            files = {"adapter_model.safetensors": f"{run.pk:064x}"}
            Adapter.objects.publish(run, f"{run.pk:064x}", files, 1000 * run.pk)
        else:
            measured["validation_loss"] = 1.0
        run.end(TrainingRun.Outcome.SUCCEEDED, step=10, measured=measured)
    finish(job)


def end_evaluation(job: Job, table: Table, metric: str, groups: Sequence[int] = ()) -> None:
    """End an evaluation job with the scores of `table`; `groups`: the group of each row."""
    for evaluation in job.evaluations.select_related("run__study_arm"):
        arm = evaluation.run.study_arm
        assert arm
        base = evaluation.subject == Evaluation.Subject.BASE
        values = next(iter(table["base"].values())) if base else table[arm.name][evaluation.run.seed]
        items = [
            {
                "row": row,
                "system": "",
                "prompt": f"p{row}",
                "expected": "e",
                "output": "o",
                "scores": {metric: value},
            }
            for row, value in enumerate(values, 1)
        ]
        if groups:
            items = [item | {"group": group} for item, group in zip(items, groups, strict=True)]
        speeds = {"ms_per_token": 20.0 if base else 21.5 + 3 * arm.position, "base_ms_per_token": 20.0}
        evaluation.record_result(len(items), {metric: sum(values) / len(values), **speeds}, items)
    finish(job)


def score_first_seed(study: Study, table: Table) -> Study:
    """Train and evaluate the first seed of a study."""
    end_training(study.jobs().order_by("pk")[0])
    study.advance()
    end_evaluation(study.jobs().get(kind=Job.Kind.EVALUATE), table, study.metric)
    study.advance()
    return Study.objects.get(pk=study.pk)


def conclude(study: Study, table: Table, groups: Sequence[int] = ()) -> Study:
    """End all jobs of a study and return it with its result."""
    for _round in range(20):
        job = study.jobs().filter(state=State.QUEUED).order_by("pk").first()
        if job is None:
            break
        if job.kind == Job.Kind.TRAIN:
            end_training(job)
        else:
            end_evaluation(job, table, study.metric, groups)
        study.advance()
    return Study.objects.get(pk=study.pk)


def finished_study(project: Project, dataset: Dataset, base_model: BaseModel, by: User) -> Study:
    """Return a study of three arms and three seeds; efficient is as good as quality, mlp worse."""
    queued = make_study(
        project, dataset, base_model, by=by, slugs=("efficient", "mlp", "quality"), margin=0.06
    )
    return conclude(queued, TABLE)
