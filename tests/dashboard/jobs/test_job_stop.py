"""Stopping a job, the progress that a stop keeps, and resuming it."""

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

KEPT = "the checkpoint will be kept, so that the run can be resumed"


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


def add_run(run: TrainingRun) -> None:
    """Add a second run to the job of `run`."""
    other = TrainingRun.objects.get(pk=run.pk)
    other.pk, other._state.adding, other.name = None, True, "The other"
    other.save()


def last_event(job: Job) -> str:
    event = job.events.last()
    assert event is not None
    return event.description


@pytest.mark.parametrize(
    ("keep", "state", "request_", "text"),
    [
        ("", State.CANCELLING, "cancel", "asked to stop: the progress is discarded"),
        ("adapter", State.RUNNING, "finish", "asked to stop and keep the best weights so far"),
        (
            "checkpoint",
            State.CANCELLING,
            "park",
            "asked to stop: the checkpoint will be kept, so that the run can be resumed",
        ),
    ],
)
def test_a_running_job_gets_a_stop_request(
    training: Job, ed: User, keep: str, state: State, request_: str, text: str
) -> None:
    assert training.read_stop_request() == ""
    assert training.request_cancel(ed, keep=keep)
    assert (training.state, training.read_stop_request()) == (state, request_)
    assert last_event(training) == f"ed@example.org {text}"


def test_a_replaced_attempt_is_fenced(training: Job) -> None:
    stale = Job.objects.get(pk=training.pk)
    Job.objects.filter(pk=training.pk).update(attempt=2)
    assert stale.read_stop_request() is None


@pytest.mark.parametrize("phase", ["", "loading"])
def test_a_starting_job_may_keep_its_adapter(job: Job, ed: User, phase: str) -> None:
    """The engine may have trained already, so it decides."""
    job.move("claim", attempt=1, worker="w@host")
    if phase:
        job.move("progress")
        job.update_progress(phase=phase)
    assert job.request_cancel(ed, keep="adapter")
    assert job.read_stop_request() == "finish"


def test_a_repeated_request_is_recorded_once(training: Job, ed: User) -> None:
    for _time in range(2):
        assert training.request_cancel(ed, keep="adapter")
    assert training.events.filter(event="finish").count() == 1


def test_a_search_run_keeps_no_adapter(training: Job, ed: User) -> None:
    TrainingRun.objects.update(rung=0)
    assert training.request_cancel(ed, keep="adapter")
    assert (training.state, training.read_stop_request()) == (State.CANCELLING, "cancel")


@pytest.mark.parametrize("keep", ["adapter", "checkpoint"])
def test_a_kept_result_can_still_be_discarded(training: Job, ed: User, keep: str) -> None:
    training.request_cancel(ed, keep=keep)
    assert training.request_cancel(ed)
    assert training.read_stop_request() == "cancel"
    training.refresh_from_db()
    assert not training.keep


@pytest.mark.parametrize("keep", ["adapter", "checkpoint"])
def test_a_discarded_result_cannot_be_kept(training: Job, ed: User, keep: str) -> None:
    training.request_cancel(ed)
    assert not training.request_cancel(ed, keep=keep)
    assert training.read_stop_request() == "cancel"


def test_a_job_whose_runs_have_ended_cannot_be_stopped(training: Job, run: TrainingRun, ed: User) -> None:
    run.end("succeeded", step=5)
    assert not training.request_cancel(ed)
    assert not training.request_cancel(ed, keep="checkpoint")
    assert (training.state, training.read_stop_request()) == (State.RUNNING, "")


def test_a_stop_leaves_ended_runs_as_they_are(training: Job, run: TrainingRun, ed: User) -> None:
    add_run(run)
    run.end("succeeded", step=5)
    assert training.request_cancel(ed)
    training.move("stopped", fenced=True)
    outcomes = training.training_runs.order_by("pk").values_list("outcome", flat=True)
    assert list(outcomes) == ["succeeded", "cancelled"]


@pytest.mark.parametrize("keep", ["adapter", "checkpoint"])
def test_a_waiting_job_without_progress_is_cancelled(job: Job, ed: User, keep: str) -> None:
    assert job.request_cancel(ed, keep=keep)
    assert (job.state, job.keep, job.keeps_checkpoint) == (State.CANCELLED, "", False)
    assert last_event(job) == "ed@example.org stopped it while it waited: there was no progress yet"


def test_an_interrupted_job_with_a_checkpoint_saves_its_adapter_next(training: Job, ed: User) -> None:
    make_checkpoint(training, step=3)
    training.interrupt("the worker died")
    assert training.request_cancel(ed, keep="adapter")
    assert (training.state, training.keep) == (State.INTERRUPTED, "adapter")
    training.requeue_or_fail()
    claimed = Job.objects.claim("gpu", worker="w", slot="s", host="h", pid=1, pid_started=1.0)
    assert claimed is not None
    assert claimed.read_stop_request() == "finish"


def test_an_interrupted_job_keeps_its_checkpoint(training: Job, ed: User) -> None:
    make_checkpoint(training, step=3)
    training.interrupt("the worker died")
    assert training.request_cancel(ed, keep="checkpoint")
    assert (training.state, training.keeps_checkpoint) == (State.CANCELLED, True)


def test_stop_without_checkpoint_cancels(training: Job, ed: User) -> None:
    training.request_cancel(ed, keep="adapter")
    training.interrupt("the worker died")
    training.refresh_from_db()
    assert (training.state, training.keep) == (State.CANCELLED, "")
    assert last_event(training).endswith("Stopped before the first checkpoint; nothing to keep.")
    assert [run.outcome for run in training.training_runs.all()] == ["cancelled"]


def test_stop_with_checkpoint_survives_an_interruption(training: Job, ed: User) -> None:
    make_checkpoint(training, step=3)
    training.request_cancel(ed, keep="adapter")
    training.interrupt("the worker died")
    assert (training.state, training.keep) == (State.INTERRUPTED, "adapter")


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_stop_before_the_first_step_keeps_nothing(job: Job, ed: User, is_lost: bool) -> None:
    job.move("claim", attempt=1, worker="w@host")
    job.request_cancel(ed, keep="checkpoint")
    if is_lost:
        job.recover("Its worker process is gone.")
    else:
        job.complete_stop(actor="w@host")
    assert (job.state, Job.objects.get(pk=job.pk).keep) == (State.CANCELLED, "")
    cause = "Its worker process is gone. " if is_lost else ""
    assert last_event(job) == f"Stopped: {cause}There was no progress to keep."


@pytest.mark.parametrize(
    ("keep", "step", "text"),
    [
        ("checkpoint", 5, "Stopped: The run can be resumed from step 5."),
        ("checkpoint", 3, "Stopped: The last steps could not be saved. The run can be resumed from step 3."),
        ("checkpoint", None, "Stopped: No checkpoint could be saved, so nothing is kept."),
        ("", 5, "Stopped"),
    ],
)
def test_the_history_says_which_checkpoint_is_kept(
    training: Job, ed: User, keep: str, step: int | None, text: str
) -> None:
    training.request_cancel(ed, keep=keep)
    if step:
        make_checkpoint(training, step=step)
    training.complete_stop(actor="w@host")
    assert Job.objects.get(pk=training.pk).keeps_checkpoint == bool(keep and step)
    assert last_event(training) == text


def test_an_unreadable_checkpoint_is_kept(training: Job, ed: User, monkeypatch: pytest.MonkeyPatch) -> None:
    training.request_cancel(ed, keep="checkpoint")
    make_checkpoint(training, step=5)

    def refuse(_folder: Path) -> list[Path]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("workers.contract.checkpoint_ownership.valid_checkpoints", refuse)
    training.complete_stop(actor="w@host")
    assert Job.objects.get(pk=training.pk).keeps_checkpoint
    assert last_event(training) == "Stopped: The checkpoint cannot be read at the moment."


def test_only_a_training_keeps_progress(run: TrainingRun, ed: User) -> None:
    other = Job.objects.submit(Job.Kind.IMPORT, {}, project=run.project, by=ed)
    other.move("claim", attempt=1)
    assert other.request_cancel(ed, keep="checkpoint")
    assert (other.state, other.keep, last_event(other)) == (
        State.CANCELLING, "", "ed@example.org asked to stop"
    )  # fmt: skip


def test_a_stopped_job_is_resumed(training: Job, run: TrainingRun, ed: User) -> None:
    make_checkpoint(training, step=4)
    training.request_cancel(ed, keep="checkpoint")
    training.move("stopped", fenced=True)
    Outbox.objects.all().delete()
    resume(training, ed)
    run.refresh_from_db()
    assert (training.state, training.keep, training.failed_attempts) == (State.QUEUED, "", 0)
    assert run.state == "queued"
    assert Outbox.objects.filter(job=training).exists()
    assert last_event(training) == "ed@example.org resumed it"


def test_a_failed_job_is_resumed_without_its_error(training: Job, run: TrainingRun, ed: User) -> None:
    make_checkpoint(training, step=4)
    training.move("fail", error_code="disk_full", error_message="The disk is full.")
    resume(training, ed)
    run.refresh_from_db()
    assert (training.error, run.error, run.error_code) == (None, None, "")


def test_a_job_is_not_resumed_if_its_checkpoints_are_deleted_meanwhile(
    training: Job, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(training, step=4)
    training.move("fail", error_code="disk_full", error_message="The disk is full.")
    move = Job.move

    def delete_first(self: Job, event: str, **fields: object) -> None:
        shutil.rmtree(self.checkpoint_folder())
        move(self, event, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(Job, "move", delete_first)
    with pytest.raises(IllegalMove, match="no checkpoint"):
        resume(training, ed)
    training.refresh_from_db()
    assert training.state == State.FAILED
    assert not training.events.filter(event="resume").exists()


def test_a_running_job_is_not_resumed(training: Job, ed: User) -> None:
    make_checkpoint(training, step=4)
    with pytest.raises(IllegalMove, match="waiting or running"):
        resume(training, ed)


def test_a_finished_job_is_not_resumed(job: Job, ed: User) -> None:
    finish(job)
    with pytest.raises(IllegalMove, match="finished"):
        resume(job, ed)


@pytest.mark.parametrize(("keep", "has_checkpoint"), [("checkpoint", False), ("", True)])
def test_a_job_without_a_kept_checkpoint_is_not_resumed(
    training: Job, ed: User, keep: str, has_checkpoint: bool
) -> None:
    if has_checkpoint:
        make_checkpoint(training, step=4)
    training.request_cancel(ed, keep=keep)
    training.move("stopped", fenced=True)
    with pytest.raises(IllegalMove, match="no checkpoint"):
        resume(training, ed)


def test_a_diverged_run_is_not_resumed(training: Job, run: TrainingRun, ed: User) -> None:
    make_checkpoint(training, step=4)
    add_run(run)
    run.end("failed", step=5, code="diverged", message="The loss was no number.")
    training.request_cancel(ed, keep="checkpoint")
    training.move("stopped", fenced=True)
    resume(training, ed)
    assert [run.outcome for run in training.training_runs.order_by("pk")] == ["failed", ""]
    training.training_runs.update(outcome="failed", error_code="diverged")
    Job.objects.filter(pk=training.pk).update(state=State.FAILED, finished_at="2026-01-01T00:00Z")
    training.refresh_from_db()
    with pytest.raises(IllegalMove, match="diverged"):
        resume(training, ed)


def test_a_damaged_checkpoint_does_not_count(training: Job) -> None:
    make_checkpoint(training, step=3, number=1)
    newest = make_checkpoint(training, step=6, number=2)
    assert training.checkpoint_step() == 6
    (newest / "manifest.json").write_text(json.dumps([1]))
    assert training.checkpoint_step() == 3


def test_checkpoints_are_kept_as_long_as_a_job_can_be_resumed(job: Job) -> None:
    for state in State:
        for keep in Job.Keep:
            job.state, job.keep = state, keep
            is_discarded = state == State.CANCELLED and keep != Job.Keep.CHECKPOINT
            assert job.keeps_checkpoint != (state == State.SUCCEEDED or is_discarded)
