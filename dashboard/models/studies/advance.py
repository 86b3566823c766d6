"""The next jobs of a study: the search for learning rates, seeds to train, adapters to evaluate.

The seeds up to the next look are queued together; in limited time each seed waits for the one before. The
adapters of a training job are evaluated as soon as it ends, so that no worker waits for another. Reads
how far its runs have come and queues whatever that allows, so that a crash between two steps loses nothing.
Called under the study's lock; of a look it stores the verdicts of the decided arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from dashboard.models.adapters.adapter import Adapter, AdapterQuerySet
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.worker_node import WorkerNode
from dashboard.models.studies.forecast import remaining_training_seconds, seconds_queued
from dashboard.models.studies.looks import Look, is_time_spent, open_arms
from dashboard.models.studies.reuse import left_to_score, reuse_run
from dashboard.models.studies.study_arm import StudyArm
from dashboard.models.training.forecast import forecast_runs
from dashboard.models.training.training_run import TrainingRun
from workers.contract.hyperparameters import Hyperparameters
from workers.forecasting.training_cost import expected_seconds

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.studies.study import Study

Item = TypeVar("Item")
# (arm, settings, rung of the search or None)
Cell = tuple[StudyArm, Hyperparameters, int | None]


def queue_next(study: Study, look: Look | None = None, idempotency_key: str = "") -> bool:
    """Queue the next jobs, and return whether none will follow once they have ended.

    `look`: the one that the next seed waits for, if all scores were there. Also stores the forecast of the
    training that is queued and to come.
    """
    if _searches(study, idempotency_key):
        return False
    arms = _arms_with_runs(study)
    scores = Evaluation.objects.filter(run__study_arm__study=study, adapter__isnull=False)
    scored = set(scores.values_list("run", flat=True))
    is_complete, to_come = True, 0.0
    for place, seed in enumerate(study.seeds):
        runs = [run for arm in arms for run in arm.final_runs() if run.seed == seed]
        if place and not runs:
            if _waits(study, place, look):
                is_complete, to_come = False, remaining_training_seconds(study)
                break
            # A look has stored its verdicts.
            arms = _arms_with_runs(study)
            if not open_arms(study) or is_time_spent(study, seed):
                break
        begun = {run.study_arm_id for run in runs}
        missing = [arm for arm in arms if arm.pk not in begun and not arm.verdict]
        key = idempotency_key if seed == study.seeds[0] else ""
        runs += submit_training(study, [(arm, arm.settings(seed=seed), None) for arm in missing], key)
        key = "" if any(run.job_id for run in runs) else key
        for trained in runs_by_job(runs):
            if all(run.is_over for run in trained) and any(run.pk not in scored for run in trained):
                unscored = Adapter.objects.filter(run__in=trained, evaluations=None)
                submit_scoring(study, unscored, study.created_by, key)
    # An arm whose search failed gets no seeds, and a decided one no further seeds.
    if study.forecast_seconds != (seconds := seconds_queued(study) + to_come):
        study.forecast_seconds = seconds
        study.save(update_fields=["forecast_seconds"])
    return is_complete


def _arms_with_runs(study: Study) -> list[StudyArm]:
    """Return the arms that are not lost, each with its runs."""
    return [arm for arm in study.arms_with_runs() if not arm.is_lost]


def _waits(study: Study, place: int, look: Look | None) -> bool:
    """Return whether the seed at `place` waits for scores; store the verdicts of the look before it."""
    is_at_look = place in study.look_sizes
    if not is_at_look and study.max_hours is None:
        return False
    # A look that was taken before a job was queued again lacks its scores.
    if study.has_open_jobs() or (is_at_look and (look is None or look.size != place)):
        return True
    for position, verdict in look.decided.items() if is_at_look and look else ():
        study.arms.filter(position=position, verdict={}).update(verdict=verdict)
    return False


def _searches(study: Study, idempotency_key: str) -> bool:
    """Queue the next rungs of ended ones; return whether the search goes on."""
    if not study.learning_rates:
        return False
    arms = _arms_with_runs(study)
    if any(not run.is_over for arm in arms for run in arm.search_runs()):
        return True
    cells: list[Cell] = []
    for arm in arms:
        rung, trials = arm.next_trials()
        cells += [(arm, learn, rung) for learn in trials]
        if not trials:
            arm.choose_rate()
    if cells:
        submit_training(study, cells, idempotency_key)
    return bool(cells)


def submit_training(study: Study, cells: Sequence[Cell], idempotency_key: str = "") -> list[TrainingRun]:
    """Freeze and return a run for each of `cells`; reuse finished ones and queue the others.

    The first job gets the key.
    """
    frozen = []
    for arm, learn, rung in cells:
        run = TrainingRun(
            project=study.project,
            created_by=study.created_by,
            name=arm.run_name(learn, rung),
            dataset_version=study.dataset_version,
            base_model=study.base_model,
            target_module_config=arm.target_module_config,
            study_arm=arm,
            rung=rung,
        )
        run.freeze(learn, confirmed=study.confirmed_by_id is not None)
        frozen.append(run)
    for run, forecast in zip(frozen, forecast_runs(frozen), strict=True):
        run.forecast = forecast
    # A short run of the search publishes no adapter, so it has none to reuse.
    reused = [run for run in frozen if study.reuse and run.rung is None and reuse_run(run)]
    runs = [run for run in frozen if run not in reused]
    for place, batch in enumerate(training_batches(runs)):
        job = Job.objects.submit(
            Job.Kind.TRAIN,
            {"specs": [run.spec for run in batch]},
            project=study.project,
            by=study.created_by,
            idempotency_key="" if place else idempotency_key,
        )
        for run in batch:
            run.job = job
            run.save()
    return reused + runs


def training_batches(runs: Sequence[TrainingRun]) -> list[list[TrainingRun]]:
    """Group the runs of a seed by job, each on one loaded base: a part of about equal time for each worker.

    A run that cannot share a base model has a job of its own.
    """
    workers = WorkerNode.objects.count_slots(Job.Queue.GPU)
    jobs: list[list[TrainingRun]] = []
    for batch in batches(runs, [run.requires_dedicated_base for run in runs]):
        parts: list[list[TrainingRun]] = [[] for _ in range(max(1, min(workers, len(batch))))]
        for run in sorted(batch, key=lambda run: -expected_seconds(run.forecast)):
            min(parts, key=lambda part: sum(expected_seconds(one.forecast) for one in part)).append(run)
        jobs += [sorted(part, key=batch.index) for part in parts]
    return jobs


def runs_by_job(runs: Sequence[TrainingRun]) -> list[list[TrainingRun]]:
    """Group the runs that trained in one job, and those that are reused."""
    jobs: dict[int | None, list[TrainingRun]] = {}
    for run in runs:
        jobs.setdefault(run.job_id, []).append(run)
    return list(jobs.values())


def batches(items: Sequence[Item], alone: Sequence[bool]) -> list[list[Item]]:
    """Group the items that may share a batch, and give each of the others its own."""
    shared = [item for item, is_alone in zip(items, alone, strict=True) if not is_alone]
    apart = [[item] for item, is_alone in zip(items, alone, strict=True) if is_alone]
    return [shared, *apart] if shared else apart


def submit_scoring(
    study: Study, selected: AdapterQuerySet, by: User | None, idempotency_key: str = ""
) -> None:
    """Queue the evaluation of some adapters on the study's rows; the first job gets the key."""
    adapters = left_to_score(
        study, selected.select_related("run__project", "run__base_model", "run__dataset_version")
    )
    alone = [adapter.run.requires_dedicated_base for adapter in adapters]
    for place, batch in enumerate(batches(adapters, alone)):
        Evaluation.objects.submit_for_study(study, batch, by, "" if place else idempotency_key)
