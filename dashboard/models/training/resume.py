"""Resuming an ended training from its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import models, transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.jobs.compute_budget import require_budget
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import IllegalMove, State
from workers.contract.errors import SpecError, TargetError

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.studies.study import Study
    from dashboard.models.training.training_run import TrainingRun

DIVERGED = gettext_lazy("It diverged and would do so again. Start a new run with a lower learning rate.")


def resume_refusal(job: Job) -> str:
    """Return why the job cannot be resumed now; "" if it can."""
    if job.kind != Job.Kind.TRAIN:
        return _("Only a training can be resumed. Start this work again instead.")
    if job.state == State.SUCCEEDED:
        return _("It has finished, so there is nothing left to resume.")
    if not job.is_over:
        return _("It is waiting or running, so there is nothing to resume.")
    if not _resumable_runs(job).exists():
        return str(DIVERGED)
    if not job.keeps_checkpoint or job.checkpoint_step() is None:
        return _("It has no checkpoint to resume from. Start it again with the same settings.")
    return ""


def resume(job: Job, by: User | None = None) -> None:
    """Queue an ended training again, from its checkpoint. Raises IllegalMove with the reason."""
    if reason := resume_refusal(job):
        raise IllegalMove(reason)
    try:
        with transaction.atomic():
            job.move(
                "resume",
                actor=str(by or "system"),
                keep=Job.Keep.NOTHING,
                failed_attempts=0,
                # A user decided to try again: earlier attempts no longer count towards the limit.
                ignored_attempts=models.F("attempt"),
                run_after=Now(),
                phase="",
                eta_seconds=None,
                error_code="",
                error_message="",
            )
            # Only the row's lock keeps the cleanup from deleting the checkpoints now.
            if job.checkpoint_step() is None:
                raise IllegalMove("its checkpoints were cleared")
            _resumable_runs(job).update(
                outcome="", error_code="", error_message="", ended_step=None, measured={}
            )
    except IllegalMove as error:
        job.refresh_from_db()
        raise IllegalMove(resume_refusal(job)) from error
    job.refresh_from_db()


def resume_run(run: TrainingRun, by: User | None = None) -> None:
    """Resume the job of a run with all its stopped runs; an ended study continues too.

    Raises IllegalMove with the reason if that is not possible, and OverBudget.
    """
    if run.job is None:
        raise IllegalMove(_("It has not been started, so there is nothing to resume."))
    if run.outcome in (run.Outcome.SUCCEEDED, run.Outcome.STOPPED_EARLY):
        raise IllegalMove(_("It has finished, so there is nothing left to resume."))
    if run.error_code == "diverged":
        raise IllegalMove(DIVERGED)
    with transaction.atomic():
        study = run.study_arm.study if run.study_arm else None
        # The study is locked before the job, as everywhere: no two transactions wait for each other.
        had_ended = study is not None and _lock_study(study)
        run.project.hold()
        resume(run.job, by)
        resumed = run.job.training_runs.filter(outcome="").prefetch_related("metric_series")
        seconds = sum(resumed_run.seconds_left for resumed_run in resumed)
        if study:
            seconds += _continue_study(study)
        if had_ended:
            run.job.record("go_on", State.QUEUED, State.QUEUED)
        require_budget(run.project, seconds, by)


def _lock_study(study: Study) -> bool:
    """Lock the study and return whether it had ended. Raises IllegalMove while it is being stopped."""
    study.lock()
    if study.cancelled_at and study.state == State.CANCELLING:
        raise IllegalMove(_("Its study is being stopped. Resume the run when the study has stopped."))
    return study.finished_at is not None


def _continue_study(study: Study) -> float:
    """Let the study go on, and return the seconds of what it then trains. Raises IllegalMove if it cannot."""
    try:
        return study.reopen()
    except (SpecError, TargetError) as error:
        text = _("Its study cannot go on: %(reason)s Start a new run with the same settings.")
        raise IllegalMove(text % {"reason": error.message}) from error


def _resumable_runs(job: Job) -> models.QuerySet[TrainingRun]:
    """Return the runs that were stopped or failed with the job, except diverged ones."""
    ended = job.training_runs.filter(outcome__in=[State.CANCELLED, State.FAILED])
    return ended.exclude(error_code="diverged")
