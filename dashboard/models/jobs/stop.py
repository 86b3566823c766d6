"""Stopping a job with all its runs, and what of a training is kept.

A waiting job ends at once. Of a running job the row stores the request, which its worker reads within two
seconds. Everything happens under the job's row lock, so no worker claims it meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import WAITING, State

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.training.training_run import TrainingRun


class StopRefused(Exception):
    """A run or job cannot be stopped as requested. `field` is the part of the request at fault."""

    def __init__(self, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code, self.field = code, field


def stop_run(run: TrainingRun, by: User | None = None, keep: str = "", *, seen_waiting: bool = False) -> None:
    """Stop the job of a run, with every run that trains in it, or raise StopRefused.

    `keep` and `seen_waiting` are those of `stop_job`.
    """
    if run.job is None:
        raise StopRefused("already_ended", _("This run has not been started, so there is nothing to stop."))
    run.refresh_from_db(fields=["outcome"])
    if not run.outcome and stop_job(run.job, by, keep, seen_waiting=seen_waiting):
        run.refresh_from_db(fields=["outcome", "ended_step"])
        return
    if run.outcome or run.job.is_over:
        state = run.get_outcome_display() or run.job.get_state_display()
        raise StopRefused("already_ended", _("It has already ended: %(state)s.") % {"state": state})
    message = _("This run is already being stopped and keeps less than you asked for.")
    raise StopRefused("already_stopping", message, "keep")


def stop_job(job: Job, by: User | None = None, keep: str = "", *, seen_waiting: bool = False) -> bool:
    """Stop a job and all its runs; `keep` is a `Job.Keep`.

    Return False if it had ended, or is being stopped already with less kept than requested. `seen_waiting`:
    the user was told that nothing is lost; raises StopRefused if the job has started since.
    """
    with transaction.atomic():
        row = Job.objects.select_for_update().get(pk=job.pk)
        if seen_waiting and not row.is_over and may_have_progress(row):
            message = _("This job has started meanwhile, so work may be lost. Please choose again.")
            raise StopRefused("has_begun", message)
        keep = keep if row.kind == Job.Kind.TRAIN else Job.Keep.NOTHING
        is_stopped = _stop(row, str(by or "system"), keep)
    job.refresh_from_db()
    return is_stopped


def _stop(row: Job, actor: str, keep: str) -> bool:
    if row.is_over:
        return False
    if row.state == State.CANCELLING:
        return keep == row.keep or (not keep and _discard(row, actor))
    if keep == Job.Keep.ADAPTER and _is_search_only(row):
        keep = Job.Keep.NOTHING
    # A job that is saving its adapter keeps the best so far already.
    if keep == Job.Keep.ADAPTER and (row.state == State.FINALIZING or row.keep == keep):
        return True
    if keep == Job.Keep.ADAPTER and may_have_progress(row):
        Job.objects.filter(pk=row.pk).update(keep=keep, run_after=Now())
        row.record("finish", State(row.state), State(row.state), actor=actor)
        return True
    if row.state not in WAITING and _have_all_runs_ended(row):
        return False
    may_keep = keep == Job.Keep.CHECKPOINT and may_have_progress(row)
    keep = Job.Keep.CHECKPOINT if may_keep else Job.Keep.NOTHING
    event = "cancel_waiting" if row.state in WAITING else "cancel"
    row.move(event, actor=actor, reason=_describe_kept(row, keep), keep=keep)
    return True


def _have_all_runs_ended(row: Job) -> bool:
    outcomes = row.training_runs.values_list("outcome", flat=True)
    return bool(outcomes) and all(outcomes)


def _is_search_only(row: Job) -> bool:
    """Return whether the job only searches for learning rates: search runs publish no adapter."""
    runs = row.training_runs.all()
    return runs.exists() and not runs.filter(rung=None).exists()


def _discard(row: Job, actor: str) -> bool:
    """Keep nothing of a job that is being stopped already."""
    Job.objects.filter(pk=row.pk).update(keep=Job.Keep.NOTHING)
    row.record("discard", State.CANCELLING, State.CANCELLING, actor=actor)
    return True


def may_have_progress(row: Job) -> bool:
    """Return whether there may be progress to keep. A running engine may be ahead of its row."""
    return row.state not in WAITING or has_progress(row)


def has_progress(row: Job) -> bool:
    """Return whether the row or a checkpoint shows progress to keep."""
    trains = row.state not in WAITING and (row.phase == "training" or bool(row.step))
    return row.may_have_checkpoint or trains


def _describe_kept(row: Job, keep: str) -> str:
    """Return what is kept of a training, for the job's history."""
    if row.kind != Job.Kind.TRAIN:
        return ""
    if keep == Job.Keep.CHECKPOINT and row.state in WAITING:
        return _("the checkpoint is kept, to resume later")
    if keep == Job.Keep.CHECKPOINT:
        return _("the checkpoint will be kept, so that the run can be resumed")
    return _("the progress is discarded") if has_progress(row) else _("there was no progress yet")


def describe_kept_checkpoint(job: Job) -> str:
    """Return which checkpoint a stop has left, for the job's history; it may be older than requested."""
    step = job.checkpoint_step()
    reached = Job.objects.values_list("step", flat=True).get(pk=job.pk)
    if step is not None:
        text = _("The run can be resumed from step %(step)s.") % {"step": f"{step:,}"}
        return f"{_('The last steps could not be saved.')} {text}" if step < reached else text
    if job.may_have_checkpoint:
        return _("The checkpoint cannot be read at the moment.")
    if reached:
        return _("No checkpoint could be saved, so nothing is kept.")
    return _("There was no progress to keep.")
