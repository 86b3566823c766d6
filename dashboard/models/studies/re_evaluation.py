"""Re-evaluation: queue the evaluations that a run or a study lacks because they failed or were cancelled.

Rows, metric and settings are those of the first evaluation. The base model is included if its scores are
missing too. A study gets a new verdict once the scores are there.
"""

from __future__ import annotations

from django.db import transaction
from django.utils.translation import gettext as _

from dashboard.models.accounts.user import User
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.evaluations.evaluation import Evaluation, adapter_evaluation, run_spec
from dashboard.models.jobs.compute_budget import require_budget
from dashboard.models.jobs.job_state import State
from dashboard.models.studies.advance import submit_scoring
from dashboard.models.studies.study import Study
from dashboard.models.training.evaluation_cost import expected_scoring_seconds
from dashboard.models.training.training_run import TrainingRun

Scope = Study | TrainingRun


class ReevaluationRefused(Exception):
    """There is nothing to re-evaluate; the text is the reason."""


def needs_evaluation(run: TrainingRun) -> bool:
    """Return whether the run has an adapter without scores, and no evaluation is to come."""
    if evaluation := adapter_evaluation(run):
        return evaluation.state in (State.FAILED, State.CANCELLED)
    # Adapters of a cancelled study may never have been evaluated.
    return hasattr(run, "adapter") and (run.study_arm is None or run.study_arm.study.is_over)


def runs_to_evaluate(study: Study) -> list[TrainingRun]:
    """Return the runs that the verdict should count and cannot, because they have no scores."""
    return [run for run in study.final_runs() if needs_evaluation(run)]


def run_for_base_evaluation(study: Study) -> TrainingRun | None:
    """Return a run to evaluate the base model with, if its evaluation failed: it has no job of its own."""
    evaluations = Evaluation.objects.filter(run__study_arm__study=study)
    if not evaluations.exists() or Evaluation.objects.active_base_of(study).exists():
        return None
    return next((run for run in study.final_runs() if hasattr(run, "adapter")), None)


def reevaluate(scope: Scope, by: User | None = None) -> None:
    """Queue the evaluations that a run or a study lacks.

    The lock on the row makes the second of two requests find them queued. Raises ReevaluationRefused if there
    is nothing to evaluate, and OverBudget if the month's compute budget has no room.
    """
    with transaction.atomic():
        if isinstance(scope, Study):
            study = Study.objects.select_for_update().get(pk=scope.pk)
            base_run = run_for_base_evaluation(study)
            runs = runs_to_evaluate(study) or ([base_run] if base_run else [])
            if not runs:
                raise ReevaluationRefused(
                    _("Every adapter has its scores, or its evaluation is still to come.")
                )
            _submit_for_study(study, runs, by)
            return
        arm = scope.study_arm
        study_of_run = Study.objects.select_for_update().get(pk=arm.study_id) if arm else None
        run = TrainingRun.objects.select_for_update().get(pk=scope.pk)
        if not needs_evaluation(run):
            raise ReevaluationRefused(_refusal(run))
        if study_of_run:
            _submit_for_study(study_of_run, [run], by)
        else:
            _require_same_base(run)
            kept = Evaluation.objects.kept_base(run.base_model, run.dataset_version, run_spec(run))
            expected = expected_scoring_seconds(run, with_base=not kept)
            require_budget(run.project, expected, by, is_queued=False)
            Evaluation.objects.submit(run.adapter, by)


def _submit_for_study(study: Study, runs: list[TrainingRun], by: User | None) -> None:
    for run in runs:
        _require_same_base(run)
    planned = len(study.seeds) * study.arms.count()
    expected = float(study.forecast.get("scoring", {}).get("expected", 0.0))
    require_budget(study.project, expected * len(runs) / max(1, planned), by, is_queued=False)
    for seed in dict.fromkeys(run.seed for run in runs):
        of_seed = [run.pk for run in runs if run.seed == seed]
        submit_scoring(study, Adapter.objects.filter(run__in=of_seed), by)
    # The study gets a new verdict; a cancelled one stays so and trains nothing more.
    Study.objects.filter(pk=study.pk).update(finished_at=None)


def _require_same_base(run: TrainingRun) -> None:
    """Raise ReevaluationRefused if the base model is another one than the adapter was trained on."""
    trained_on, now = run.spec["base"].get("sha256"), run.base_model.sha256
    if trained_on and now and trained_on != now:
        text = _("%(base)s has changed since this adapter was trained. Restore the original files.")
        raise ReevaluationRefused(text % {"base": run.base_model})


def _refusal(run: TrainingRun) -> str:
    if evaluation := adapter_evaluation(run):
        if evaluation.state == State.SUCCEEDED:
            return _("The adapter already has its scores.")
        return _("The adapter is already being evaluated or in the queue.")
    if Adapter.objects.filter(run=run).exists():
        return _("The adapter is evaluated when the runs that train with it have ended.")
    return _("The run has no adapter, so there is nothing to evaluate.")
