"""Stopping work as a person asks for it: a whole job, or one run of several that train together in one.

All of it happens under the job's row lock: meanwhile nobody claims it, and nobody commits the end of an arm.
What waits ends at once; what works is a wish in the row, which its worker sees within two seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import models, transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from dashboard.models.job import Job
from dashboard.models.job_state import WAITING, State
from dashboard.models.training_run import TrainingRun
from workers.events import stronger

if TYPE_CHECKING:
    from dashboard.models.user import User


class StopRefused(Exception):
    """Why nothing is stopped like this, in words; `field` is the part of the question it is about."""

    def __init__(self, code: str, words: str, field: str | None = None) -> None:
        super().__init__(words)
        self.code, self.field = code, field

    @property
    def leaves_a_choice(self) -> bool:
        """Whether another answer to the same question may still be given."""
        return self.code in ("has_begun", "trains_with_others")


# A whole job


def stop_job(job: Job, by: User | None = None, keep: str = "", *, seen_waiting: bool = False) -> bool:
    """Stop it with all it does. `keep`: what of it stays.

    False if it had ended, or is being stopped already with less kept than asked for now. `seen_waiting`:
    whoever asks was told that nothing is lost; StopRefused where that does not hold any more.
    """
    with transaction.atomic():
        row = Job.objects.select_for_update().get(pk=job.pk)
        if seen_waiting:
            _require_nothing_lost(row)
        keep = keep if row.kind == Job.Kind.TRAIN else Job.Keep.NOTHING
        is_stopped = _stop(row, str(by or "system"), keep)
    job.refresh_from_db()
    return is_stopped


def _stop(row: Job, actor: str, keep: str) -> bool:
    if row.is_over:
        return False
    if row.state == State.CANCELLING:
        return keep == row.keep or (not keep and _discard_after_all(row, actor))
    if keep == Job.Keep.ADAPTER and _only_searches(row):
        keep = Job.Keep.NOTHING
    # What is being saved is the best there is.
    if keep == Job.Keep.ADAPTER and (row.state == State.FINALIZING or row.keep == keep):
        return True
    if keep == Job.Keep.ADAPTER and may_have_progress(row):
        Job.objects.filter(pk=row.pk).update(keep=keep, run_after=Now())
        row.record("finish", State(row.state), State(row.state), actor=actor)
        return True
    if row.state not in WAITING and _is_all_done(row):
        return False
    may_keep = keep == Job.Keep.CHECKPOINT and may_have_progress(row)
    keep = Job.Keep.CHECKPOINT if may_keep else Job.Keep.NOTHING
    event = "cancel_waiting" if row.state in WAITING else "cancel"
    row.move(event, actor=actor, reason=_words_of(row, keep), keep=keep)
    return True


def _require_nothing_lost(row: Job) -> None:
    if not row.is_over and may_have_progress(row):
        words = _("It has begun meanwhile, so something may be lost. Please choose again.")
        raise StopRefused("has_begun", words)


def _is_all_done(row: Job) -> bool:
    """Whether each of its arms has come to its end: its engine only has to say goodbye."""
    outcomes = row.training_runs.values_list("outcome", flat=True)
    return bool(outcomes) and all(outcomes)


def _only_searches(row: Job) -> bool:
    """Whether it only looks for a learning rate: nothing of that is published, so it has no best to keep."""
    arms = row.training_runs.all()
    return arms.exists() and not arms.filter(rung=None).exists()


def _discard_after_all(row: Job, actor: str) -> bool:
    Job.objects.filter(pk=row.pk).update(keep=Job.Keep.NOTHING)
    row.record("discard", State.CANCELLING, State.CANCELLING, actor=actor)
    return True


def may_have_progress(row: Job) -> bool:
    """Whether there may be anything to keep: beyond its last checkpoint a lost attempt leaves nothing.

    One that works may be ahead of its row, and goes on until it hears of the stop: its engine finds what
    there is, and says so where that is nothing.
    """
    return row.state not in WAITING or has_progress(row)


def has_progress(row: Job) -> bool:
    """Whether its row tells of anything to keep."""
    trains = row.state not in WAITING and (row.phase == "training" or bool(row.step))
    return row.may_have_checkpoint or trains


def _words_of(row: Job, keep: str) -> str:
    """What stays of a training, for its history; of one at work it is a wish until it has stopped."""
    if row.kind != Job.Kind.TRAIN:
        return ""
    if keep == Job.Keep.CHECKPOINT and row.state in WAITING:
        return _("what it has learned is kept, to resume later")
    if keep == Job.Keep.CHECKPOINT:
        return _("what it has learned is to be kept, to resume later")
    return _("what it has learned is discarded") if has_progress(row) else _("it had learned nothing yet")


def describe_kept_checkpoint(job: Job) -> str:
    """What a stop that was to keep the checkpoint has left, for the history: it may have come to less."""
    step = job.checkpoint_step()
    reached = Job.objects.values_list("step", flat=True).get(pk=job.pk)
    if step is not None:
        words = _("It can be resumed from step %(step)s.") % {"step": f"{step:,}"}
        return f"{_('Its last steps could not be saved.')} {words}" if step < reached else words
    if job.may_have_checkpoint:
        return _("Its checkpoint cannot be read at the moment.")
    if reached:
        return _("Nothing of it could be saved, so nothing is kept.")
    return _("It had learned nothing yet, so nothing is kept.")


# One run of several


def stop_run(run: TrainingRun, by: User | None = None, keep: str = "", *, seen_waiting: bool = False) -> None:
    """Stop this run alone; those that train with it go on, unchanged. StopRefused says in words why not.

    Where nobody trains on and none has left an adapter, its job is stopped with it. `seen_waiting`: whoever
    asks was told that nothing is lost, which holds only while it waits.
    """
    if run.job_id is None:
        raise StopRefused("already_ended", _("It has not been started, so there is nothing to stop."))
    with transaction.atomic():
        job = Job.objects.select_for_update().get(pk=run.job_id)
        run.job = job
        run.refresh_from_db(fields=["outcome", "stop_asked"])
        if run.outcome or job.is_over:
            ended = run.get_outcome_display() or job.get_state_display()
            raise StopRefused("already_ended", _("It has already ended: %(state)s.") % {"state": ended})
        if seen_waiting:
            _require_nothing_lost(job)
        if _is_the_job(run, keep):
            if not job.request_cancel(by, keep):
                raise _already_stopping()
        else:
            _stop_alone(run, job, str(by or "system"), keep)
    run.refresh_from_db(fields=["outcome", "ended_step", "stop_asked"])


def companions(run: TrainingRun) -> models.QuerySet[TrainingRun]:
    """The runs that train with it in one job and have not ended."""
    return TrainingRun.objects.exclude(job=None).filter(job=run.job_id, outcome="").exclude(pk=run.pk)


def _is_the_job(run: TrainingRun, keep: str) -> bool:
    """Whether the end of this run is that of its job: nobody trains on, and nobody leaves an adapter."""
    others = companions(run)
    if keep == Job.Keep.CHECKPOINT:
        return not others.exists()
    if keep == Job.Keep.ADAPTER and others.exists():
        return False
    if others.exclude(stop_asked=run.Stop.CANCEL).exists():
        return False
    return not TrainingRun.objects.in_group("finished").filter(job=run.job_id).exists()


def _stop_alone(run: TrainingRun, job: Job, actor: str, keep: str) -> None:
    if keep == Job.Keep.CHECKPOINT:
        words = _(
            "It trains together with other runs, which have one checkpoint in common and go on. So its own "
            "cannot be kept. Keep its best as an adapter, keep nothing, or let it go on."
        )
        raise StopRefused("trains_with_others", words, "keep")
    if keep and (job.state == State.CANCELLING or run.stop_asked == run.Stop.CANCEL):
        raise _already_stopping()
    # Of a run that only looks for a learning rate nothing is published.
    may_finish = keep == Job.Keep.ADAPTER and run.rung is None and may_have_progress(job)
    wish = run.Stop.FINISH if may_finish else run.Stop.CANCEL
    if stronger(wish, run.stop_asked) == run.stop_asked:
        return
    words = _("the best so far is to be kept") if may_finish else _words_of(job, Job.Keep.NOTHING)
    state = State(job.state)
    job.record("stop_run", state, state, actor=actor, text=f"{run.name}; {words}")
    TrainingRun.objects.filter(pk=run.pk).update(stop_asked=wish)
    if state in WAITING and wish == run.Stop.CANCEL:
        run.end(run.Outcome.CANCELLED, step=run.trained_step)


def _already_stopping() -> StopRefused:
    words = _("It is being stopped already, and less of it is kept than you ask for.")
    return StopRefused("already_stopping", words, "keep")


def arms_to_stop(job: Job) -> dict[int, str]:
    """Which arms of a training are to end alone, by their place in it, and why: the engine's words."""
    arms = job.training_runs.order_by("pk").values_list("outcome", "stop_asked")
    return {place: wish for place, (outcome, wish) in enumerate(arms) if wish and not outcome}
