"""Continuing an ended training from its checkpoint, as a person asks for it: why not, or how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import models, transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.job import Job
from dashboard.models.job_state import IllegalMove, State

if TYPE_CHECKING:
    from dashboard.models.training_run import TrainingRun
    from dashboard.models.user import User

DIVERGED = gettext_lazy("It diverged and would do so again. Start a new run with a lower learning rate.")


def refusal(job: Job) -> str:
    """Why a person cannot continue it now, or ""."""
    if job.kind != Job.Kind.TRAIN:
        return _("Only a training can be resumed. Start this work again instead.")
    if job.state == State.SUCCEEDED:
        return _("It has finished, so there is nothing left to resume.")
    if not job.is_over:
        return _("It waits or works already, so there is nothing to resume.")
    if not _arms(job).exists():
        return str(DIVERGED)
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
                fruitless=0,
                # Somebody has looked at it: what happened before counts no more.
                excused=models.F("attempt"),
                suspicion="",
                run_after=Now(),
                # It was moved up among jobs that waited at another time.
                place=None,
                own_place=None,
                phase="",
                eta_seconds=None,
                error_code="",
                error_message="",
            )
            # Only under the row's lock it is sure that nobody clears them.
            if job.checkpoint_step() is None:
                raise IllegalMove("its checkpoints were cleared")
            _arms(job).update(outcome="", error_code="", error_message="", ended_step=None, measured={})
    except IllegalMove as overtaken:
        job.refresh_from_db()
        raise IllegalMove(refusal(job)) from overtaken
    job.refresh_from_db()


def _arms(job: Job) -> models.QuerySet[TrainingRun]:
    """Arms that were stopped or fell with the job. One that diverged would diverge again."""
    stopped = job.training_runs.filter(outcome__in=[State.CANCELLED, State.FAILED])
    return stopped.exclude(error_code="diverged")
