"""Reuse in studies: a finished run with an equal spec is not trained again, nor scored again on equal rows.

The arm gets a run of its own, with the adapter and the measured values of the finished one and without a job.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dashboard.models.adapters.adapter import Adapter
from dashboard.models.evaluations.evaluation import Evaluation, study_spec, test_rows
from dashboard.models.evaluations.evaluation_item import EvaluationItem
from dashboard.models.jobs.job_state import State
from dashboard.models.training.training_run import TrainingRun
from workers.contract.base_scores import base_scores_key

if TYPE_CHECKING:
    from dashboard.models.studies.study import Study

# Items that one INSERT copies.
ITEMS_AT_ONCE = 500


def reuse_run(run: TrainingRun) -> bool:
    """Save a frozen run as finished if there is one with an equal spec; return whether there is."""
    equal_run = TrainingRun.objects.finished_equal(run)
    if equal_run is None:
        return False
    run.reused_from, run.outcome = equal_run, TrainingRun.Outcome.SUCCEEDED
    run.ended_step, run.measured = equal_run.ended_step, equal_run.measured
    run.training_seconds = equal_run.training_seconds
    run.save()
    adapter = equal_run.adapter
    Adapter.objects.publish(run, adapter.folder, adapter.files, adapter.size_bytes)
    return True


def left_to_score(study: Study, adapters: Iterable[Adapter]) -> list[Adapter]:
    """Copy the equal evaluations of reused runs; return the adapters that have none.

    While the study has no job, one adapter is left in any case: its job carries the request's key.
    """
    ordered = sorted(adapters, key=lambda adapter: adapter.run.reused_from_id is not None)
    kept = [] if not ordered or study.jobs().exists() else ordered[:1]
    return kept + [adapter for adapter in ordered[len(kept) :] if not _reuse_evaluation(study, adapter)]


def _reuse_evaluation(study: Study, adapter: Adapter) -> bool:
    """Copy the reused run's evaluation on equal rows with equal decoding and metrics, if there is one."""
    key = base_scores_key(study_spec(study, adapter.run), test_rows(study.dataset_version))
    equal = Evaluation.objects.ended().filter(
        run=adapter.run.reused_from_id,
        subject=Evaluation.Subject.ADAPTER,
        reused_from=None,
        base_evaluation__key=key,
        base_evaluation__job__state=State.SUCCEEDED,
    )
    found = equal.order_by("-pk").first() if adapter.run.reused_from_id else None
    if found:
        _copy(found, adapter)
    return found is not None


def _copy(evaluation: Evaluation, adapter: Adapter) -> None:
    items = list(evaluation.items.all())
    original = evaluation.pk
    evaluation.pk, evaluation._state.adding = None, True
    evaluation.run, evaluation.adapter, evaluation.reused_from_id = adapter.run, adapter, original
    evaluation.judge_job = None
    evaluation.save()
    for item in items:
        item.pk, item.evaluation = None, evaluation
    EvaluationItem.objects.bulk_create(items, batch_size=ITEMS_AT_ONCE)
    evaluation.store_scores()
