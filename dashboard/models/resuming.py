"""Continuing an ended training from its checkpoint, as a person asks for it: why not, or how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import models, transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.compute_budget import require_budget
from dashboard.models.job import Job
from dashboard.models.job_state import IllegalMove, State
from workers.errors import SpecError, TargetError

if TYPE_CHECKING:
    from dashboard.models.study import Study
    from dashboard.models.training_run import TrainingRun
    from dashboard.models.user import User

DIVERGED = gettext_lazy("It diverged and would do so again. Start a new run with a lower learning rate.")
STOPPED_ALONE = gettext_lazy(
    "It was stopped while others trained on, and nothing of it was kept. "
    "Start it again with the same settings."
)


def refusal(job: Job) -> str:
    """Why a person cannot continue it now, or ""."""
    if job.kind != Job.Kind.TRAIN:
        return _("Only a training can be resumed. Start this work again instead.")
    if job.state == State.SUCCEEDED:
        return _("It has finished, so there is nothing left to resume.")
    if not job.is_over:
        return _("It waits or works already, so there is nothing to resume.")
    if not _arms(job).exists():
        return str(DIVERGED if job.training_runs.filter(error_code="diverged").exists() else STOPPED_ALONE)
    if not job.keeps_checkpoint or job.checkpoint_step() is None:
        return _("It has no checkpoint to resume from. Start it again with the same settings.")
    return ""


def resume(job: Job, by: User | None = None) -> None:
    """Queue an ended training again, from its checkpoint; IllegalMove says in words why not."""
    if reason := refusal(job):
        raise IllegalMove(reason)
    try:
        with transaction.atomic():
            job.move(
                "resume",
                actor=str(by or "system"),
                keep=Job.Keep.NOTHING,
                failed_attempts=0,
                # Somebody has looked at it: what happened before counts no more.
                ignored_attempts=models.F("attempt"),
                run_after=Now(),
                phase="",
                eta_seconds=None,
                error_code="",
                error_message="",
            )
            # Only under the row's lock it is sure that nobody clears them.
            if job.checkpoint_step() is None:
                raise IllegalMove("its checkpoints were cleared")
            # Whoever continues them wants them to train on, whatever was asked of one before.
            again = {"outcome": "", "stop_asked": "", "error_code": "", "error_message": ""}
            _arms(job).update(**again, ended_step=None, measured={})
    except IllegalMove as overtaken:
        job.refresh_from_db()
        raise IllegalMove(refusal(job)) from overtaken
    job.refresh_from_db()


def resume_run(run: TrainingRun, by: User | None = None) -> None:
    """Continue a run and what was stopped with it; its study, where it has one, is judged once more.

    IllegalMove says why not; OverBudget, that the month has no room for what is left.
    """
    if run.job is None:
        raise IllegalMove(_("It has not been started, so there is nothing to resume."))
    if run.outcome in (run.Outcome.SUCCEEDED, run.Outcome.STOPPED_EARLY):
        raise IllegalMove(_("It has finished, so there is nothing left to resume."))
    if run.error_code == "diverged":
        raise IllegalMove(DIVERGED)
    if run.was_stopped_alone:
        raise IllegalMove(STOPPED_ALONE)
    with transaction.atomic():
        study = run.study_arm.study if run.study_arm else None
        # Before the job, as whoever moves the study on.
        had_ended = study is not None and _has_ended(study)
        run.project.hold()
        resume(run.job, by)
        resumed = run.job.training_runs.filter(outcome="").prefetch_related("metric_series")
        seconds = sum(one.seconds_left for one in resumed)
        if study:
            seconds += _go_on(study)
        if had_ended:
            run.job.record("go_on", State.QUEUED, State.QUEUED)
        require_budget(run.project, seconds, by)


def _has_ended(study: Study) -> bool:
    """Whether it had; one that is being stopped would stop what is resumed as well, or not, by chance."""
    study.lock()
    if study.cancelled_at and study.state == State.CANCELLING:
        raise IllegalMove(_("Its study is being stopped. Resume it once that has ended."))
    return study.finished_at is not None


def _go_on(study: Study) -> float:
    try:
        return study.reopen()
    except (SpecError, TargetError) as changed:
        words = _("Its study cannot go on: %(why)s Start a run of its own with the same settings.")
        raise IllegalMove(words % {"why": changed.message}) from changed


def _arms(job: Job) -> models.QuerySet[TrainingRun]:
    """Arms that were stopped or fell with the job. One that diverged would diverge again."""
    stopped = job.training_runs.filter(outcome__in=[State.CANCELLED, State.FAILED])
    # Of one that was stopped alone nothing was kept.
    return stopped.exclude(error_code="diverged").exclude(outcome=State.CANCELLED, stop_asked="cancel")
