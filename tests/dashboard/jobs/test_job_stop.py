"""Stopping a training with something kept, and continuing it: what the row says, and what nobody may undo."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from dashboard.models import IllegalMove, Job, Outbox, State, TrainingRun, User
from dashboard.models.training.resume import resume
from tests.conftest import finish
from tests.dashboard.conftest import make_checkpoint


@pytest.fixture
def job(run: TrainingRun) -> Job:
    assert run.job is not None
    return run.job


@pytest.fixture
def training(job: Job) -> Job:
    """A job whose worker has trained five steps."""
    job.move("claim", attempt=1, worker="w@host")
    job.move("progress")
    job.update_progress(step=5)
    return job


def words(job: Job) -> str:
    event = job.events.last()
    assert event is not None
    return event.description


def test_it_goes_on_until_somebody_wants_a_stop(training: Job) -> None:
    assert training.read_stop_request() == ""


def test_it_finishes_early_to_keep_the_best(training: Job, ed: User) -> None:
    assert training.request_cancel(ed, keep="adapter")
    assert (training.state, training.read_stop_request()) == (State.RUNNING, "finish")
    assert words(training) == "ed@example.org asked to stop and keep the best weights so far"


@pytest.mark.parametrize("phase", ["", "loading", "training"])
def test_it_finishes_early_too_where_its_engine_is_ahead_of_its_row(job: Job, ed: User, phase: str) -> None:
    job.move("claim", attempt=1, worker="w@host")
    if phase:
        job.move("progress")
        job.update_progress(phase=phase)
    state = job.state
    assert job.request_cancel(ed, keep="adapter")
    assert (job.state, job.read_stop_request()) == (state, "finish")


def test_it_asks_once_to_keep_the_best(training: Job, ed: User) -> None:
    assert training.request_cancel(ed, keep="adapter")
    assert training.request_cancel(ed, keep="adapter")
    assert training.events.filter(event="finish").count() == 1


def test_of_a_search_for_a_rate_there_is_no_adapter_to_keep(training: Job, ed: User) -> None:
    TrainingRun.objects.update(rung=0)
    assert training.request_cancel(ed, keep="adapter")
    assert (training.state, training.read_stop_request()) == (State.CANCELLING, "cancel")


def test_it_parks_to_keep_the_checkpoint(training: Job, ed: User) -> None:
    assert training.request_cancel(ed, keep="checkpoint")
    assert (training.state, training.read_stop_request()) == (State.CANCELLING, "park")
    assert words(training) == "ed@example.org asked to stop: the checkpoint is to be kept, to resume later"
    training.move("stopped", fenced=True)
    assert training.keeps_checkpoint


def test_it_discards_without_a_word_about_keeping(training: Job, ed: User) -> None:
    assert training.request_cancel(ed)
    assert training.read_stop_request() == "cancel"
    training.move("stopped", fenced=True)
    assert not training.keeps_checkpoint


def test_a_plain_cancel_overrides_an_end_that_keeps_the_best(training: Job, ed: User) -> None:
    training.request_cancel(ed, keep="adapter")
    assert training.request_cancel(ed)
    assert (training.keep, training.read_stop_request()) == ("", "cancel")


def test_a_checkpoint_on_its_way_can_still_be_discarded(training: Job, ed: User) -> None:
    training.request_cancel(ed, keep="checkpoint")
    assert training.request_cancel(ed)
    assert training.read_stop_request() == "cancel"
    training.refresh_from_db()
    assert not training.keep


@pytest.mark.parametrize("keep", ["adapter", "checkpoint"])
def test_what_is_being_discarded_cannot_be_kept_any_more(training: Job, ed: User, keep: str) -> None:
    training.request_cancel(ed)
    assert not training.request_cancel(ed, keep=keep)
    assert training.read_stop_request() == "cancel"


def test_nothing_is_left_to_stop_once_every_arm_has_ended(training: Job, run: TrainingRun, ed: User) -> None:
    run.end("succeeded", step=5)
    assert not training.request_cancel(ed)
    assert not training.request_cancel(ed, keep="checkpoint")
    assert (training.state, training.read_stop_request()) == (State.RUNNING, "")


def test_one_arm_of_two_that_has_ended_leaves_the_other_to_stop(
    training: Job, run: TrainingRun, ed: User
) -> None:
    other = TrainingRun.objects.get(pk=run.pk)
    other.pk, other._state.adding, other.name = None, True, "The other"
    other.save()
    run.end("succeeded", step=5)
    assert training.request_cancel(ed)
    training.move("stopped", fenced=True)
    ends = training.training_runs.order_by("pk").values_list("outcome", flat=True)
    assert list(ends) == ["succeeded", "cancelled"]


def test_an_attempt_that_was_replaced_is_fenced(training: Job) -> None:
    stale = Job.objects.get(pk=training.pk)
    Job.objects.filter(pk=training.pk).update(attempt=2)
    assert stale.read_stop_request() is None


def test_keeping_the_best_of_nothing_is_a_plain_cancel(job: Job, ed: User) -> None:
    assert job.request_cancel(ed, keep="adapter")
    assert (job.state, job.keep) == (State.CANCELLED, "")


def test_a_waiting_job_with_a_checkpoint_finishes_at_its_next_attempt(training: Job, ed: User) -> None:
    make_checkpoint(training, step=3)
    training.interrupt("the worker died")
    assert training.request_cancel(ed, keep="adapter")
    assert (training.state, training.keep) == (State.INTERRUPTED, "adapter")
    training.requeue_or_fail()
    claimed = Job.objects.claim("gpu", worker="w", slot="s", host="h", pid=1, pid_started=1.0)
    assert claimed is not None
    assert claimed.read_stop_request() == "finish"


def test_who_was_to_keep_its_best_and_has_lost_all_does_not_wait_to_be_told_so(
    training: Job, ed: User
) -> None:
    training.request_cancel(ed, keep="adapter")
    training.interrupt("the worker died")
    training.refresh_from_db()
    assert (training.state, training.keep) == (State.CANCELLED, "")
    assert words(training).endswith("Stopped before the first checkpoint; nothing to keep.")
    assert [run.outcome for run in training.training_runs.all()] == ["cancelled"]


def test_who_was_to_keep_its_best_goes_on_from_its_checkpoint(training: Job, ed: User) -> None:
    make_checkpoint(training, step=3)
    training.request_cancel(ed, keep="adapter")
    training.interrupt("the worker died")
    assert (training.state, training.keep) == (State.INTERRUPTED, "adapter")


def test_a_waiting_job_keeps_its_checkpoint(training: Job, ed: User) -> None:
    make_checkpoint(training, step=3)
    training.interrupt("the worker died")
    assert training.request_cancel(ed, keep="checkpoint")
    assert (training.state, training.keeps_checkpoint) == (State.CANCELLED, True)


def test_a_waiting_job_without_a_checkpoint_keeps_nothing_and_says_so(job: Job, ed: User) -> None:
    assert job.request_cancel(ed, keep="checkpoint")
    assert (job.state, job.keep, job.keeps_checkpoint) == (State.CANCELLED, "", False)
    assert words(job) == "ed@example.org stopped it while it waited: there was no progress yet"


def test_a_job_that_ends_before_it_has_learned_anything_keeps_nothing_and_says_so(job: Job, ed: User) -> None:
    job.move("claim", attempt=1, worker="w@host")
    assert job.request_cancel(ed, keep="checkpoint")
    assert words(job).endswith("the checkpoint is to be kept, to resume later"), "a wish, not a promise"
    job.complete_stop(actor="w@host")
    assert (job.state, Job.objects.get(pk=job.pk).keep) == (State.CANCELLED, "")
    assert words(job) == "Stopped: There was no progress to keep."


def test_a_stop_whose_worker_was_lost_keeps_nothing_where_nothing_was(job: Job, ed: User) -> None:
    job.move("claim", attempt=1, worker="w@host")
    job.request_cancel(ed, keep="checkpoint")
    job.recover("Its worker process is gone.")
    assert Job.objects.get(pk=job.pk).keep == ""
    assert words(job) == "Stopped: Its worker process is gone. There was no progress to keep."


def test_what_was_kept_stays_kept_once_it_has_stopped(training: Job, ed: User) -> None:
    training.request_cancel(ed, keep="checkpoint")
    make_checkpoint(training, step=5)
    training.complete_stop(actor="w@host")
    assert Job.objects.get(pk=training.pk).keeps_checkpoint
    assert words(training) == "Stopped: It can be resumed from step 5."


def test_it_says_where_the_last_steps_could_not_be_saved(training: Job, ed: User) -> None:
    training.request_cancel(ed, keep="checkpoint")
    make_checkpoint(training, step=3)
    training.complete_stop(actor="w@host")
    assert words(training) == "Stopped: Its last steps could not be saved. It can be resumed from step 3."


def test_it_says_where_nothing_could_be_saved(training: Job, ed: User) -> None:
    training.request_cancel(ed, keep="checkpoint")
    training.complete_stop(actor="w@host")
    assert not Job.objects.get(pk=training.pk).keeps_checkpoint
    assert words(training) == "Stopped: No checkpoint could be saved, so nothing is kept."


def test_it_promises_nothing_of_a_checkpoint_that_cannot_be_read_now(
    training: Job, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.request_cancel(ed, keep="checkpoint")
    make_checkpoint(training, step=5)

    def refuse(_folder: Path) -> list[Path]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("workers.contract.checkpoint_ownership.valid_checkpoints", refuse)
    training.complete_stop(actor="w@host")
    assert Job.objects.get(pk=training.pk).keeps_checkpoint
    assert words(training) == "Stopped: Its checkpoint cannot be read at the moment."


def test_a_stop_that_keeps_nothing_says_no_more(training: Job, ed: User) -> None:
    training.request_cancel(ed)
    make_checkpoint(training, step=5)
    training.complete_stop(actor="w@host")
    assert words(training) == "Stopped"


def test_only_a_training_keeps_anything(run: TrainingRun, ed: User) -> None:
    other = Job.objects.submit(Job.Kind.IMPORT, {}, project=run.project, by=ed)
    other.move("claim", attempt=1)
    assert other.request_cancel(ed, keep="checkpoint")
    assert (other.state, other.keep, words(other)) == (State.CANCELLING, "", "ed@example.org asked to stop")


def test_it_resumes_with_what_had_ended_open_again(training: Job, run: TrainingRun, ed: User) -> None:
    make_checkpoint(training, step=4)
    training.request_cancel(ed, keep="checkpoint")
    training.move("stopped", fenced=True)
    Outbox.objects.all().delete()
    resume(training, ed)
    run.refresh_from_db()
    assert (training.state, training.keep, training.failed_attempts, run.state) == (
        State.QUEUED,
        "",
        0,
        "queued",
    )
    assert Outbox.objects.filter(job=training).exists()
    assert words(training) == "ed@example.org resumed it"


def test_it_resumes_after_a_failure(training: Job, run: TrainingRun, ed: User) -> None:
    make_checkpoint(training, step=4)
    training.move("fail", error_code="disk_full", error_message="The disk is full.")
    resume(training, ed)
    run.refresh_from_db()
    assert (training.error, run.error, run.error_code) == (None, None, "")


def test_it_is_not_resumed_when_its_checkpoints_are_cleared_in_that_moment(
    training: Job, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(training, step=4)
    training.move("fail", error_code="disk_full", error_message="The disk is full.")
    move = Job.move

    def cleared_first(self: Job, event: str, **fields: object) -> None:
        shutil.rmtree(self.checkpoint_folder())
        move(self, event, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(Job, "move", cleared_first)
    with pytest.raises(IllegalMove, match="no checkpoint"):
        resume(training, ed)
    training.refresh_from_db()
    assert training.state == State.FAILED
    assert not training.events.filter(event="resume").exists()


def test_it_refuses_to_resume_what_works(training: Job, ed: User) -> None:
    make_checkpoint(training, step=4)
    with pytest.raises(IllegalMove, match="waiting or running"):
        resume(training, ed)


def test_it_refuses_to_resume_what_has_finished(job: Job, ed: User) -> None:
    finish(job)
    with pytest.raises(IllegalMove, match="finished"):
        resume(job, ed)


def test_it_refuses_to_resume_without_a_checkpoint(training: Job, ed: User) -> None:
    training.request_cancel(ed, keep="checkpoint")
    training.move("stopped", fenced=True)
    with pytest.raises(IllegalMove, match="no checkpoint"):
        resume(training, ed)


def test_it_refuses_to_resume_what_was_discarded(training: Job, ed: User) -> None:
    make_checkpoint(training, step=4)
    training.request_cancel(ed)
    training.move("stopped", fenced=True)
    with pytest.raises(IllegalMove, match="no checkpoint"):
        resume(training, ed)


def test_it_refuses_to_resume_what_diverged(training: Job, run: TrainingRun, ed: User) -> None:
    make_checkpoint(training, step=4)
    run.end("failed", step=5, code="diverged", message="The loss was no number.")
    training.move("fail", error_code="diverged", error_message="The loss was no number.")
    with pytest.raises(IllegalMove, match="diverged"):
        resume(training, ed)


def test_resuming_leaves_a_diverged_arm_ended(training: Job, run: TrainingRun, ed: User) -> None:
    second = TrainingRun.objects.get(pk=run.pk)
    second.pk = None
    second.save()
    run.end("failed", step=2, code="diverged", message="The loss was no number.")
    make_checkpoint(training, step=4)
    training.request_cancel(ed, keep="checkpoint")
    training.move("stopped", fenced=True)
    resume(training, ed)
    assert [arm.outcome for arm in training.training_runs.order_by("pk")] == ["failed", ""]


def test_a_damaged_checkpoint_does_not_count(training: Job) -> None:
    make_checkpoint(training, step=3, number=1)
    newest = make_checkpoint(training, step=6, number=2)
    assert training.checkpoint_step() == 6
    (newest / "state.json").unlink()
    assert training.checkpoint_step() == 3
    (newest / "manifest.json").write_text(json.dumps([1]))
    assert training.checkpoint_step() == 3


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("keep", list(Job.Keep))
def test_only_what_nobody_can_continue_loses_its_checkpoints(job: Job, state: State, keep: str) -> None:
    Job.objects.filter(pk=job.pk).update(state=state, keep=keep, finished_at="2026-01-01T00:00Z")
    job.refresh_from_db()
    is_discarded = state == State.CANCELLED and keep != Job.Keep.CHECKPOINT
    assert job.keeps_checkpoint != (state == State.SUCCEEDED or is_discarded)
