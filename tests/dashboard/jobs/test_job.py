"""The state machine of a job: its moves, claims, retries and history."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from dashboard.models import IllegalMove, Job, JobEvent, Outbox, Project, State
from dashboard.models.jobs.job_state import MOVES, TERMINAL


def submit(project: Project, kind: Job.Kind = Job.Kind.IMPORT) -> Job:
    return Job.objects.submit(kind, {}, project=project, by=None)


def claim(queue: str = "cpu", slot: str | None = None) -> Job | None:
    return Job.objects.claim(queue, worker="w@host", slot=slot, host="host", pid=1, pid_started=1.0)


@pytest.fixture
def claimed(project: Project) -> Job:
    submit(project)
    job = claim()
    assert job is not None
    return job


def test_a_job_is_written_with_its_event_and_wake_up(project: Project) -> None:
    job = submit(project)
    assert (job.state, job.events.count(), Outbox.objects.filter(job=job).count()) == (State.QUEUED, 1, 1)


def test_a_job_is_claimed_once(claimed: Job) -> None:
    assert (claimed.attempt, claim()) == (1, None)


def test_a_slot_holds_one_job(project: Project) -> None:
    submit(project, Job.Kind.TRAIN)
    submit(project, Job.Kind.TRAIN)
    assert claim("gpu", slot="host:cpu0") is not None
    assert claim("gpu", slot="host:cpu0") is None


def test_the_moves_are_exactly_these() -> None:
    """Written out, because the random walks read the same table and would not notice a change of it."""
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


def test_other_moves_are_refused(project: Project) -> None:
    for event, (sources, _target) in MOVES.items():
        for state in set(State) - set(sources):
            job = submit(project)
            Job.objects.filter(pk=job.pk).update(state=state, finished_at="2026-01-01T00:00Z")
            with pytest.raises(IllegalMove):
                job.move(event)


def test_an_earlier_attempt_is_fenced(claimed: Job) -> None:
    Job.objects.filter(pk=claimed.pk).update(attempt=2)
    assert not claimed.renew_lease()
    assert not claimed.update_progress(step=5)
    assert not claimed.add_message("Read 20 rows.")
    with pytest.raises(IllegalMove):
        claimed.move("progress", fenced=True)
    assert not JobEvent.objects.filter(job=claimed, event="message").exists()


def test_a_job_interrupted_meanwhile_is_cancelled(claimed: Job) -> None:
    Job.objects.get(pk=claimed.pk).move("interrupt")
    assert claimed.request_cancel()
    assert claimed.state == State.CANCELLED
    assert not claimed.request_cancel()


def test_three_failed_attempts_fail_the_job(project: Project) -> None:
    job = submit(project)
    for state in (State.INTERRUPTED, State.INTERRUPTED, State.FAILED):
        Job.objects.filter(pk=job.pk).update(run_after="2026-01-01T00:00Z")
        attempt = claim()
        assert attempt is not None
        attempt.interrupt("the worker died")
        attempt.refresh_from_db()
        assert attempt.state == state
        if state == State.INTERRUPTED:
            attempt.requeue_or_fail()
    job.refresh_from_db()
    assert job.error_code == "worker_lost"


def test_attempts_with_a_completed_step_do_not_count_as_failed(project: Project) -> None:
    job = submit(project)
    for _attempt in range(3):
        Job.objects.filter(pk=job.pk).update(run_after="2026-01-01T00:00Z")
        attempt = claim()
        assert attempt is not None
        attempt.update_progress(step=1, failed_attempts=0)
        attempt.interrupt("the worker died")
        Job.objects.get(pk=job.pk).requeue_or_fail()
    job.refresh_from_db()
    assert (job.state, job.failed_attempts) == (State.QUEUED, 0)


def test_the_database_refuses_an_unknown_state_and_an_end_without_a_time(project: Project) -> None:
    job = submit(project)
    for values in ({"state": "lost"}, {"state": TERMINAL[0]}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Job.objects.filter(pk=job.pk).update(**values)
