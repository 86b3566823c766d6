"""Scoring again what has no scores, as a person asks for it: which adapters these are, why not, or how.

What failed or was stopped is queued as it was at first: the same rows, metric and settings, and the base
model with it where its scores are missing too. A study is judged anew once they are there.
"""

from __future__ import annotations

from django.db import transaction
from django.utils.translation import gettext as _

from dashboard.models.adapter import Adapter
from dashboard.models.compute_budget import require_budget_before_writing
from dashboard.models.evaluation import Evaluation, adapter_evaluation
from dashboard.models.job_state import State
from dashboard.models.scoring import expected_scoring_seconds
from dashboard.models.study import Study
from dashboard.models.study_steps import submit_scoring
from dashboard.models.training_run import TrainingRun
from dashboard.models.user import User

UNSUCCESSFUL = (State.FAILED, State.CANCELLED)
Scope = Study | TrainingRun


class ReevaluationRefused(Exception):
    """Nothing is to be scored again; the text says why."""


def needs_evaluation(run: TrainingRun) -> bool:
    """Whether it has an adapter without scores, and none will come by themselves."""
    found = adapter_evaluation(run)
    if found:
        return found.state in UNSUCCESSFUL
    # The adapters of a study that was stopped may never have had their turn.
    return hasattr(run, "adapter") and (run.study_arm is None or run.study_arm.study.is_over)


def unscored(study: Study) -> list[TrainingRun]:
    """The runs that its verdict should count and cannot, for want of scores."""
    return [run for run in study.final_runs() if needs_evaluation(run)]


def run_for_base_evaluation(study: Study) -> TrainingRun | None:
    """The run to score the base model with, where that alone came to nothing: it has no job of its own."""
    asked = Evaluation.objects.filter(run__study_arm__study=study, subject=Evaluation.Subject.BASE)
    if not asked.exists() or Evaluation.objects.of_base(study).exists():
        return None
    return next((run for run in study.final_runs() if hasattr(run, "adapter")), None)


def reevaluate(scope: Scope, by: User | None = None) -> None:
    """Queue the scores that a run or a study lacks; of two clicks at once the second finds them queued.

    ReevaluationRefused says why not; OverBudget, that the month has no room for them.
    """
    with transaction.atomic():
        if isinstance(scope, Study):
            study = _locked(scope)
            first = run_for_base_evaluation(study)
            _score_in_study(study, unscored(study) or ([first] if first else []), by)
        elif scope.study_arm:
            study = _locked(scope.study_arm.study)
            run = TrainingRun.objects.get(pk=scope.pk)
            _score_in_study(study, [run] if needs_evaluation(run) else [], by, asked=run)
        else:
            _score(TrainingRun.objects.select_for_update().get(pk=scope.pk), by)


def _locked(study: Study) -> Study:
    return Study.objects.select_for_update().get(pk=study.pk)


def _score(run: TrainingRun, by: User | None) -> None:
    if not needs_evaluation(run):
        raise ReevaluationRefused(_refusal(run))
    _require_same_base(run)
    require_budget_before_writing(run.project, expected_scoring_seconds(run), by)
    Evaluation.objects.submit(run.adapter, by)


def _score_in_study(
    study: Study, runs: list[TrainingRun], by: User | None, asked: TrainingRun | None = None
) -> None:
    if not runs:
        every = _("Each of its adapters has scores, or they are to come. There is nothing to score again.")
        raise ReevaluationRefused(_refusal(asked) if asked else every)
    for run in runs:
        _require_same_base(run)
    require_budget_before_writing(study.project, _seconds_of(study, runs), by)
    for seed in dict.fromkeys(run.seed for run in runs):
        with_it = [run.pk for run in runs if run.seed == seed]
        submit_scoring(study, Adapter.objects.filter(run__in=with_it), by)
    # Judged anew afterwards. One that was stopped stays so: it trains nothing of what it has left out.
    Study.objects.filter(pk=study.pk).update(finished_at=None)


def _seconds_of(study: Study, runs: list[TrainingRun]) -> float:
    """Their part of what all scoring of the study is expected to take."""
    planned = len(study.seeds) * study.arms.count()
    return float(study.forecast.get("scoring", {}).get("expected", 0.0)) * len(runs) / max(1, planned)


def _require_same_base(run: TrainingRun) -> None:
    """Scores on another base model than the adapter was trained on would say nothing of it."""
    trained_on, now = run.spec["base"].get("sha256"), run.base_model.sha256
    if trained_on and now and trained_on != now:
        text = _("%(base)s has changed since this adapter was trained on it. Put it back as it was first.")
        raise ReevaluationRefused(text % {"base": run.base_model})


def _refusal(run: TrainingRun) -> str:
    """Why there is nothing to score of this run."""
    found = adapter_evaluation(run)
    if found and found.state == State.SUCCEEDED:
        return _("Its adapter has its scores already.")
    if found:
        return _("Its adapter is being scored already, or waits for it.")
    if Adapter.objects.filter(run=run).exists():
        return _("Its adapter is scored as soon as the other runs of its seed have ended.")
    return _("It has no adapter, so there is nothing to score.")
