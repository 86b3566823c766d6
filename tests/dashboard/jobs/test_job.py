"""The state machine: which moves exist, who wins a race, and what history keeps."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from dashboard.models import IllegalMove, Job, JobEvent, Outbox, Project, State, TrainingRun, User
from dashboard.models.jobs.job_state import MOVES, TERMINAL


def submit(project: Project, kind: Job.Kind = Job.Kind.IMPORT) -> Job:
    return Job.objects.submit(kind, {}, project=project, by=None)


def claim(queue: str = "cpu", slot: str | None = None) -> Job | None:
    return Job.objects.claim(queue, worker="w@host", slot=slot, host="host", pid=1, pid_started=1.0)


def test_it_writes_job_event_and_outbox_together(project: Project) -> None:
    job = submit(project)
    assert (job.state, job.events.count(), Outbox.objects.filter(job=job).count()) == (State.QUEUED, 1, 1)


def test_it_is_claimed_once(project: Project) -> None:
    job = submit(project)
    first, second = claim(), claim()
    assert first is not None
    assert (first.pk, first.attempt, second) == (job.pk, 1, None)


def test_it_is_claimed_in_order_and_by_priority(project: Project) -> None:
    early, late, urgent = submit(project), submit(project), submit(project)
    Job.objects.filter(pk=urgent.pk).update(priority=1)
    assert [found.pk for found in (claim(), claim(), claim()) if found] == [urgent.pk, early.pk, late.pk]


def test_it_holds_a_slot_alone(project: Project) -> None:
    submit(project, Job.Kind.TRAIN)
    submit(project, Job.Kind.TRAIN)
    assert claim("gpu", slot="host:cpu0") is not None
    assert claim("gpu", slot="host:cpu0") is None


def test_these_moves_exist_and_no_others() -> None:
    """Written out once more: walks and storms read the same table, and would not see a move come or go."""
    assert {event: (" ".join(sources), str(target)) for event, (sources, target) in MOVES.items()} == {
        "claim": ("queued", "starting"),
        "progress": ("starting", "running"),
        "work_done": ("running", "finalizing"),
        "succeed": ("finalizing", "succeeded"),
        "fail": ("starting running finalizing", "failed"),
        "interrupt": ("starting running finalizing", "interrupted"),
        "cancel_waiting": ("queued interrupted", "cancelled"),
        "cancel": ("starting running finalizing", "cancelling"),
        "stopped": ("cancelling", "cancelled"),
        "requeue": ("interrupted", "queued"),
        "give_up": ("interrupted", "failed"),
        "resume": ("failed cancelled", "queued"),
    }


def test_it_refuses_every_move_that_the_table_does_not_list(project: Project) -> None:
    for event, (sources, _target) in MOVES.items():
        for state in State:
            if state in sources:
                continue
            job = submit(project)
            Job.objects.filter(pk=job.pk).update(state=state, finished_at="2026-01-01T00:00Z")
            with pytest.raises(IllegalMove):
                job.move(event)


def test_it_never_leaves_success() -> None:
    assert not [event for event, (sources, _target) in MOVES.items() if State.SUCCEEDED in sources]


def test_it_fences_an_earlier_attempt(project: Project) -> None:
    submit(project)
    stale = claim()
    assert stale is not None
    Job.objects.filter(pk=stale.pk).update(attempt=2)
    assert not stale.renew_lease()
    assert not stale.update_progress(step=5)
    with pytest.raises(IllegalMove):
        stale.move("progress", fenced=True)


def test_it_is_cancelled_at_once_while_it_waits(run: TrainingRun, ed: User) -> None:
    assert run.job is not None
    assert run.job.request_cancel(ed)
    run.refresh_from_db()
    assert (run.job.state, run.state) == (State.CANCELLED, "cancelled")


def test_it_asks_the_worker_to_stop_while_it_works(project: Project, ed: User) -> None:
    submit(project)
    job = claim()
    assert job is not None
    assert job.request_cancel(ed)
    assert job.state == State.CANCELLING
    job.move("stopped", fenced=True)
    assert job.finished_at is not None


def test_it_is_cancelled_although_it_was_interrupted_since_it_was_read(project: Project) -> None:
    submit(project)
    job = claim()
    assert job is not None
    Job.objects.get(pk=job.pk).move("interrupt")
    assert job.request_cancel()
    assert job.state == State.CANCELLED


def test_it_cannot_be_cancelled_after_its_end(project: Project) -> None:
    job = submit(project)
    job.request_cancel()
    assert not job.request_cancel()


def test_it_backs_off_and_gives_up_when_no_attempt_gets_anywhere(project: Project) -> None:
    job = submit(project)
    for state in (State.INTERRUPTED, State.INTERRUPTED, State.FAILED):
        Job.objects.filter(pk=job.pk).update(run_after="2026-01-01T00:00Z")
        claimed = claim()
        assert claimed is not None
        claimed.interrupt("the worker died")
        claimed.refresh_from_db()
        assert claimed.state == state, "after the last attempt nobody is told that it continues by itself"
        if state == State.INTERRUPTED:
            claimed.requeue_or_fail()
    job.refresh_from_db()
    assert (job.state, job.error_code) == (State.FAILED, "worker_lost")


def test_it_does_not_count_attempts_that_got_somewhere(project: Project) -> None:
    job = submit(project)
    for _attempt in range(3):
        Job.objects.filter(pk=job.pk).update(run_after="2026-01-01T00:00Z")
        claimed = claim()
        assert claimed is not None
        claimed.update_progress(step=1, failed_attempts=0)
        claimed.interrupt("the worker died")
        Job.objects.get(pk=job.pk).requeue_or_fail()
    job.refresh_from_db()
    assert (job.state, job.failed_attempts) == (State.QUEUED, 0)


def test_it_keeps_a_history_that_cannot_be_changed(project: Project) -> None:
    submit(project)
    job = claim()
    assert job is not None
    job.add_message("Read 20 rows.")
    event = JobEvent.objects.get(job=job, event="message")
    event.text = "Read 21 rows."
    with pytest.raises(TypeError):
        event.save()


def test_an_attempt_that_was_replaced_says_nothing_more(project: Project) -> None:
    submit(project)
    job = claim()
    assert job is not None
    Job.objects.filter(pk=job.pk).update(attempt=2)
    assert not job.add_message("Read 20 rows.")
    assert not JobEvent.objects.filter(job=job, event="message").exists()


def test_the_database_refuses_an_unknown_state_and_an_end_without_a_time(project: Project) -> None:
    job = submit(project)
    for values in ({"state": "lost"}, {"state": TERMINAL[0]}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Job.objects.filter(pk=job.pk).update(**values)


def test_it_tells_its_position(project: Project) -> None:
    first, second = submit(project), submit(project)
    assert (first.position(), second.position()) == (1, 2)
    claim()
    assert second.position() == 1
