"""Stopping one run of several that train together: what the rows say, and that nobody else is stopped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dashboard.models import IllegalMove, Job, MetricSeries, State, TrainingRun, User
from dashboard.models.stopping import StopRefused, arms_to_stop, stop_run
from tests.dashboard.conftest import make_checkpoint

Runs = list[TrainingRun]


@pytest.fixture
def runs(run: TrainingRun) -> Runs:
    """Three runs of one job that waits."""
    for name in ("Second", "Third"):
        other = TrainingRun.objects.get(pk=run.pk)
        other.pk, other._state.adding, other.name = None, True, name
        other.save()
    return list(TrainingRun.objects.filter(job=run.job_id).order_by("pk"))


@pytest.fixture
def training(runs: Runs) -> Job:
    """Their job, five steps of which a worker has trained."""
    job = Job.objects.get(pk=runs[0].job_id)
    job.move("claim", attempt=1, worker="w@host")
    job.move("progress")
    job.update_progress(step=5)
    return job


def outcomes(job: Job) -> list[str]:
    return list(job.training_runs.order_by("pk").values_list("outcome", flat=True))


def last_words(job: Job) -> str:
    event = job.events.last()
    assert event is not None
    return event.description


def refused(run: TrainingRun, keep: str = "", *, seen_waiting: bool = False) -> StopRefused:
    with pytest.raises(StopRefused) as caught:
        stop_run(run, None, keep, seen_waiting=seen_waiting)
    return caught.value


def test_a_run_at_work_is_asked_to_end_alone(training: Job, runs: Runs, ed: User) -> None:
    stop_run(runs[1], ed)
    training.refresh_from_db()
    assert (training.state, training.read_stop_request(), arms_to_stop(training)) == (
        State.RUNNING,
        "",
        {1: "cancel"},
    )
    assert outcomes(training) == ["", "", ""]
    assert last_words(training) == (
        "ed@example.org asked to stop one of its runs: Second; what it has learned is discarded"
    )


def test_its_best_is_kept_where_that_is_asked_for(training: Job, runs: Runs, ed: User) -> None:
    stop_run(runs[0], ed, "adapter")
    assert arms_to_stop(training) == {0: "finish"}
    assert last_words(training).endswith("; the best so far is to be kept")


def test_before_its_row_tells_of_a_step_its_engine_says_what_there_is(
    training: Job, runs: Runs, ed: User
) -> None:
    training.update_progress(step=0)
    stop_run(runs[0], ed, "adapter")
    assert arms_to_stop(training) == {0: "finish"}
    stop_run(runs[1], ed)
    assert last_words(training).endswith("; it had learned nothing yet")


def test_of_a_search_for_a_rate_nothing_is_kept(training: Job, runs: Runs, ed: User) -> None:
    TrainingRun.objects.update(rung=0)
    runs[0].refresh_from_db()
    stop_run(runs[0], ed, "adapter")
    assert arms_to_stop(training) == {0: "cancel"}


def test_of_a_search_that_trains_alone_in_its_job_nothing_is_kept_either(run: TrainingRun, ed: User) -> None:
    TrainingRun.objects.update(rung=0)
    job = Job.objects.get(pk=run.job_id)
    job.move("claim", attempt=1)
    job.move("progress")
    job.update_progress(step=5)
    run.refresh_from_db()
    stop_run(run, ed, "adapter")
    job.refresh_from_db()
    assert (job.state, job.read_stop_request()) == (State.CANCELLING, "cancel")


def test_to_ask_again_changes_nothing(training: Job, runs: Runs, ed: User) -> None:
    for _time in range(2):
        stop_run(runs[0], ed, "adapter")
    assert training.events.filter(event="stop_run").count() == 1


def test_what_was_to_be_kept_can_be_discarded_after_all(training: Job, runs: Runs, ed: User) -> None:
    stop_run(runs[0], ed, "adapter")
    stop_run(runs[0], ed)
    assert arms_to_stop(training) == {0: "cancel"}


def test_what_is_being_discarded_cannot_be_kept_any_more(training: Job, runs: Runs, ed: User) -> None:
    stop_run(runs[0], ed)
    refusal = refused(runs[0], "adapter")
    assert (refusal.code, refusal.field) == ("already_stopping", "keep")
    assert arms_to_stop(training) == {0: "cancel"}


def test_its_checkpoint_cannot_be_kept_while_others_train_on(training: Job, runs: Runs) -> None:
    refusal = refused(runs[0], "checkpoint")
    assert (refusal.code, refusal.field) == ("trains_with_others", "keep")
    assert "one checkpoint in common" in str(refusal)
    assert arms_to_stop(training) == {}


def test_a_run_of_a_waiting_job_ends_at_once(runs: Runs, ed: User) -> None:
    stop_run(runs[2], ed)
    job = Job.objects.get(pk=runs[0].job_id)
    assert (job.state, outcomes(job), runs[2].state) == (State.QUEUED, ["", "", "cancelled"], "cancelled")
    assert last_words(job).endswith("Third; it had learned nothing yet")


def test_a_run_of_an_interrupted_job_keeps_its_best_at_the_next_attempt(
    training: Job, runs: Runs, ed: User
) -> None:
    make_checkpoint(training, step=4)
    training.interrupt("the worker died")
    stop_run(runs[0], ed, "adapter")
    assert (training.state, outcomes(training)) == (State.INTERRUPTED, ["", "", ""])
    training.requeue_or_fail()
    claimed = Job.objects.claim("gpu", worker="w", slot="s", host="h", pid=1, pid_started=1.0)
    assert claimed is not None
    assert arms_to_stop(claimed) == {0: "finish"}


def test_a_wish_that_was_not_carried_out_is_when_the_attempt_is_lost(
    training: Job, runs: Runs, ed: User
) -> None:
    MetricSeries.objects.append(runs[1], "train/loss", [(1, 2.0), (2, 1.5)])
    stop_run(runs[1], ed)
    training.interrupt("the worker died")
    assert outcomes(training) == ["", "cancelled", ""]
    runs[1].refresh_from_db()
    assert runs[1].ended_step == 2


@pytest.mark.parametrize("keep", ["", "adapter"])
def test_the_last_run_stops_the_job_where_none_has_left_an_adapter(
    training: Job, runs: Runs, ed: User, keep: str
) -> None:
    runs[0].end("failed", step=3, code="diverged")
    stop_run(runs[1], ed)
    runs[1].end("cancelled", step=5)
    stop_run(runs[2], ed, keep)
    training.refresh_from_db()
    wanted = {"": (State.CANCELLING, "cancel"), "adapter": (State.RUNNING, "finish")}[keep]
    assert (training.state, training.read_stop_request()) == wanted


def test_when_all_are_asked_to_end_the_job_is_stopped(training: Job, runs: Runs, ed: User) -> None:
    for run in runs:
        stop_run(run, ed)
    training.refresh_from_db()
    assert (training.state, training.read_stop_request()) == (State.CANCELLING, "cancel")
    training.complete_stop()
    assert outcomes(training) == ["cancelled"] * 3


def test_one_that_keeps_its_best_keeps_the_job_going(training: Job, runs: Runs, ed: User) -> None:
    stop_run(runs[0], ed, "adapter")
    for run in runs[1:]:
        stop_run(run, ed)
    training.refresh_from_db()
    assert training.state == State.RUNNING
    assert arms_to_stop(training) == {0: "finish", 1: "cancel", 2: "cancel"}


def test_the_last_run_ends_alone_where_another_has_left_its_adapter(
    training: Job, runs: Runs, ed: User
) -> None:
    for run in runs[:2]:
        run.end("succeeded", step=5)
    stop_run(runs[2], ed)
    training.refresh_from_db()
    assert (training.state, arms_to_stop(training)) == (State.RUNNING, {2: "cancel"})


def test_the_last_run_keeps_the_checkpoint_of_the_job(training: Job, runs: Runs, ed: User) -> None:
    for run in runs[:2]:
        run.end("succeeded", step=5)
    stop_run(runs[2], ed, "checkpoint")
    assert Job.objects.get(pk=training.pk).read_stop_request() == "park"


def test_a_run_that_has_ended_is_refused_and_stops_nobody(training: Job, runs: Runs) -> None:
    runs[0].end("succeeded", step=5)
    for keep in ("", "adapter", "checkpoint"):
        refusal = refused(runs[0], keep)
        assert refusal.code == "already_ended"
        assert str(refusal) == "It has already ended: Finished."
    training.refresh_from_db()
    assert (training.state, training.read_stop_request(), arms_to_stop(training)) == (State.RUNNING, "", {})


def test_a_run_without_a_job_is_refused(run: TrainingRun) -> None:
    TrainingRun.objects.update(job=None)
    run.refresh_from_db()
    assert refused(run).code == "already_ended"


@pytest.mark.parametrize("has_begun", ["claimed", "checkpoint"])
def test_who_was_told_that_nothing_is_lost_is_asked_again_once_it_has_begun(
    runs: Runs, has_begun: str
) -> None:
    job = Job.objects.get(pk=runs[0].job_id)
    if has_begun == "claimed":
        job.move("claim", attempt=1)
    else:
        make_checkpoint(job, step=3)
    assert refused(runs[0], seen_waiting=True).code == "has_begun"
    assert outcomes(job) == ["", "", ""]


def test_who_was_told_that_nothing_is_lost_is_believed_while_it_waits(runs: Runs, ed: User) -> None:
    stop_run(runs[0], ed, seen_waiting=True)
    assert runs[0].state == "cancelled"


Lose = Callable[[Job], None]


def park(job: Job) -> None:
    job.request_cancel(keep="checkpoint")
    job.complete_stop()


def fail(job: Job) -> None:
    job.move("fail", error_code="disk_full", error_message="The disk is full.")


@pytest.mark.parametrize("lose", [park, fail])
def test_what_was_stopped_alone_is_not_continued_with_the_others(
    training: Job, runs: Runs, ed: User, lose: Lose
) -> None:
    make_checkpoint(training, step=4)
    stop_run(runs[0], ed)
    lose(training)
    assert outcomes(training)[0] == "cancelled"
    for run in runs:
        run.refresh_from_db()
    assert [run.resumable_from for run in runs] == [None, 4, 4]
    with pytest.raises(IllegalMove, match="stopped while others trained on"):
        runs[0].resume(ed)
    runs[1].resume(ed)
    assert outcomes(training) == ["cancelled", "", ""]


def test_whoever_resumes_a_failed_run_wants_it_to_train_on(training: Job, runs: Runs, ed: User) -> None:
    make_checkpoint(training, step=4)
    stop_run(runs[0], ed, "adapter")
    fail(training)
    assert outcomes(training) == ["failed"] * 3
    TrainingRun.objects.get(pk=runs[0].pk).resume(ed)
    assert (outcomes(training), arms_to_stop(training)) == (["", "", ""], {})


def test_a_job_whose_other_runs_were_all_stopped_alone_has_nothing_to_resume(
    training: Job, runs: Runs, ed: User
) -> None:
    make_checkpoint(training, step=4)
    for run in runs[:2]:
        stop_run(run, ed)
        run.end("cancelled", step=5)
    runs[2].end("failed", step=5, code="diverged", message="The loss was no number.")
    training.move("fail", error_code="diverged", error_message="The loss was no number.")
    run = TrainingRun.objects.get(pk=runs[0].pk)
    with pytest.raises(IllegalMove, match="stopped while others trained on"):
        run.resume(ed)
