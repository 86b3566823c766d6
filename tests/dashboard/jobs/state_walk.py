"""A simple model of jobs beside the database, and the steps of users, workers and dispatcher on both.

A worker keeps the job as it was at its claim, so that it may sleep through any change and then go on, as a
paused process does.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models import F

from dashboard.models import Adapter, IllegalMove, Job, JobEvent, Outbox, Project, State, TrainingRun
from dashboard.models.adapters.adapter import WEIGHTS
from dashboard.models.jobs.job import BACK_OFF, MAX_ATTEMPTS, MAX_FAILED_ATTEMPTS
from dashboard.models.jobs.job_state import LEASE, LIVE, MOVES, TERMINAL, WAITING
from dashboard.models.training.resume import resume
from workers.supervision.recorders import cancel_without_result, finish_job

# Two training workers with a device each, one worker for light jobs: name -> (queue, device lock).
NODES = {"gpu0": ("gpu", "gpu0@host"), "gpu1": ("gpu", "gpu1@host"), "cpu": ("cpu", None)}
OPEN = tuple(state for state in LIVE if state != State.CANCELLING)
KEPT = ("succeeded", "stopped_early")
# The database's clock and the test's clock are not read at the same instant.
SLACK = 15.0
KEEPS = ("", "adapter", "checkpoint")
# Number of times that each step was taken, and that each event then stood in a history.
steps_taken: Counter[str] = Counter()
events_seen: Counter[str] = Counter()


@dataclass
class Row:
    """The expected state of a job."""

    queue: str
    state: State = State.QUEUED
    attempt: int = 0
    failed_attempts: int = 0
    ignored_attempts: int = 0
    keep: str = ""
    step: int = 0
    has_checkpoint: bool = False
    slot: str | None = None
    lease_until: float = 0.0
    run_after: float = 0.0
    arms: dict[int, str] = field(default_factory=dict)
    diverged: set[int] = field(default_factory=set)
    adapters: set[int] = field(default_factory=set)

    @property
    def may_have_progress(self) -> bool:
        return self.has_checkpoint or self.state in LIVE

    def end(self, state: State) -> None:
        self.state = state
        if state in (State.FAILED, State.CANCELLED):
            self.arms = {run: outcome or state.value for run, outcome in self.arms.items()}


class Walk:
    """The database and its model; after each step they must agree."""

    def __init__(self, project: Project, run: TrainingRun) -> None:
        self.project, self.run = project, run
        self.skipped, self.began = 0.0, time.monotonic()
        self.rows: dict[int, Row] = {}
        self.held: dict[str, Job] = {}
        self.last_event = 0
        self.histories: dict[int, tuple[int, State | None, int]] = {}

    def take(self, name: str, node: str, number: int) -> None:
        """Take one step; `number` decides what else there is to choose."""
        steps_taken[name] += 1
        act = getattr(self, name)
        if name in ("submit", "dispatch"):
            act()
        elif name in ("cancel", "resume", "pass_time"):
            act(number)
        elif name == "claim":
            act(node)
        elif self.held:
            act(sorted(self.held)[number % len(self.held)], number)
        self.compare()

    @property
    def now(self) -> float:
        """Return the model's clock: real seconds and skipped ones."""
        return self.skipped + time.monotonic() - self.began

    def clear(self) -> None:
        for pk in self.rows:
            shutil.rmtree(Job(pk=pk).checkpoint_folder(), ignore_errors=True)

    def pick(self, number: int) -> tuple[Job, Row]:
        pk = sorted(self.rows)[number % len(self.rows)]
        return Job.objects.get(pk=pk), self.rows[pk]

    def holds(self, node: str) -> tuple[Job, Row, bool] | None:
        """Return the worker's job, its model, and whether the worker still holds the job."""
        job = self.held.get(node)
        if job is None:
            return None
        row = self.rows[job.pk]
        return job, row, row.attempt == job.attempt and row.state in LIVE

    def expect(self, legal: bool, move: Any) -> bool:
        if legal:
            move()
            return True
        with pytest.raises(IllegalMove):
            move()
        return False

    def submit(self) -> None:
        arms = (0, 1, 3, 1, 2, 1)[len(self.rows) % 6]
        if sum(row.state not in TERMINAL for row in self.rows.values()) == 6:
            return
        if not arms:
            job = Job.objects.submit(Job.Kind.IMPORT, {}, project=self.project, by=None)
            self.rows[job.pk] = Row("cpu", run_after=self.now)
            return
        job = Job.objects.submit(Job.Kind.TRAIN, {}, project=self.project, by=None)
        # An earlier test may have left checkpoints for this primary key.
        shutil.rmtree(job.checkpoint_folder(), ignore_errors=True)
        runs = []
        for place in range(arms):
            run = TrainingRun.objects.get(pk=self.run.pk)
            run.pk, run._state.adding, run.job, run.name = None, True, job, f"arm {job.pk}.{place}"
            run.save()
            runs.append(run.pk)
        self.rows[job.pk] = Row("gpu", run_after=self.now, arms=dict.fromkeys(runs, ""))

    def cancel(self, number: int) -> None:
        job, row = self.pick(number)
        keep = KEEPS[number // 6 % 3]
        assert job.request_cancel(keep=keep) == self.is_stopped(row, keep if row.arms else "")

    def is_stopped(self, row: Row, keep: str) -> bool:
        """Stop the model's job if that is allowed. Return whether it is."""
        if row.state in TERMINAL:
            return False
        if row.state == State.CANCELLING:
            may = keep in ("", row.keep)
            row.keep = keep if may else row.keep
            return may
        if keep == "adapter" and (row.state == State.FINALIZING or row.keep == keep):
            return True
        if keep == "adapter" and row.may_have_progress:
            row.keep, row.run_after = keep, self.now
            return True
        if row.state in OPEN and row.arms and all(row.arms.values()):
            return False
        may_keep = keep == "checkpoint" and row.may_have_progress
        row.keep = keep if may_keep else ""
        if row.state in WAITING:
            row.end(State.CANCELLED)
        else:
            row.state = State.CANCELLING
        return True

    def resume(self, number: int) -> None:
        ended = [pk for pk, row in self.rows.items() if row.state in (State.FAILED, State.CANCELLED)]
        job, row = self.pick(sorted(self.rows).index(ended[number % len(ended)]) if ended else number)
        again = [run for run, end in row.arms.items() if end in ("cancelled", "failed")]
        again = [run for run in again if run not in row.diverged]
        kept = row.state == State.FAILED or (row.state == State.CANCELLED and row.keep == "checkpoint")
        if self.expect(bool(kept and row.has_checkpoint and again), lambda: resume(job)):
            row.state, row.keep, row.failed_attempts, row.ignored_attempts = State.QUEUED, "", 0, row.attempt
            row.run_after = self.now
            row.arms.update(dict.fromkeys(again, ""))

    def claim(self, node: str) -> None:
        queue, slot = NODES[node]
        requested_at = self.now
        job = Job.objects.claim(queue, worker=node, slot=slot, host="host", pid=1, pid_started=1.0)
        ready = {
            pk
            for pk, row in self.rows.items()
            if row.queue == queue and row.state == State.QUEUED and row.run_after <= self.now + SLACK
        }
        must_start = any(self.rows[pk].run_after <= requested_at - SLACK for pk in ready)
        is_busy = slot and any(row.slot == slot for row in self.rows.values() if row.state in LIVE)
        if job is None:
            assert is_busy or not must_start
            return
        assert not is_busy
        assert job.pk in ready
        row = self.rows[job.pk]
        row.state, row.attempt, row.step = State.STARTING, row.attempt + 1, 0
        row.failed_attempts += 1
        row.slot, row.lease_until = slot, self.now + LEASE.total_seconds()
        self.held[node] = job

    def progress(self, node: str, _number: int) -> None:
        if held := self.holds(node):
            job, row, is_holder = held
            legal = is_holder and row.state == State.STARTING
            if self.expect(legal, lambda: job.move("progress", actor=node, fenced=True)):
                row.state = State.RUNNING

    def step(self, node: str, _number: int) -> None:
        if held := self.holds(node):
            job, row, is_holder = held
            assert job.update_progress(step=F("step") + 1, failed_attempts=0) == is_holder
            if is_holder:
                row.step, row.failed_attempts = row.step + 1, 0

    def checkpoint(self, node: str, _number: int) -> None:
        if (held := self.holds(node)) and held[2] and held[1].step and held[1].arms:
            folder = held[0].checkpoint_folder() / "00000001"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "manifest.json").write_text(json.dumps({"step": 1, "files": {}}))
            held[1].has_checkpoint = True

    def work(self, node: str, number: int) -> None:
        """Take three steps at once, because steps drawn one by one seldom get that far."""
        for act in (self.progress, self.step, self.checkpoint):
            act(node, number)

    def renew(self, node: str, _number: int) -> None:
        if held := self.holds(node):
            job, row, is_holder = held
            assert job.renew_lease() == is_holder
            if is_holder:
                row.lease_until = self.now + LEASE.total_seconds()

    def look(self, node: str, _number: int) -> None:
        if held := self.holds(node):
            job, row, is_holder = held
            stopping = {"checkpoint": "park"}.get(row.keep, "cancel")
            going_on = "finish" if row.keep == "adapter" else ""
            wanted = stopping if row.state == State.CANCELLING else going_on
            assert job.read_stop_request() == (wanted if is_holder else None)

    def end_arm(self, node: str, number: int) -> None:
        held = self.holds(node)
        if not held or not held[1].arms:
            return
        job, row, is_holder = held
        pk = sorted(row.arms)[number % len(row.arms)]
        outcome = (*KEPT, "failed", "cancelled")[number // 3 % 4]
        run = TrainingRun.objects.get(pk=pk)
        with transaction.atomic():
            may = job.may_commit()
            assert may == (is_holder and row.state in OPEN)
            if not may:
                return
            row.lease_until = self.now + LEASE.total_seconds()
            if outcome in KEPT and not run.outcome:
                Adapter.objects.publish(run, f"{pk:064d}", {WEIGHTS: "0" * 64}, 1)
                row.adapters.add(pk)
            run.end(outcome, step=row.step, code="diverged" if outcome == "failed" else "")
        if not row.arms[pk]:
            row.arms[pk] = outcome
            row.diverged |= {pk} if outcome == "failed" else set()

    def finish(self, node: str, _number: int) -> None:
        if held := self.holds(node):
            job, row, is_holder = held
            if row.arms and not all(row.arms.values()):
                return

            def commit() -> None:
                with transaction.atomic():
                    finish_job(job)

            if row.arms and set(row.arms.values()) == {"cancelled"}:
                if self.expect(is_holder and row.state in OPEN, lambda: cancel_without_result(job)):
                    row.keep = ""
                    row.end(State.CANCELLED)
            elif self.expect(is_holder and row.state in (State.RUNNING, State.FINALIZING), commit):
                row.end(State.SUCCEEDED)

    def begin_to_save(self, node: str, _number: int) -> None:
        if held := self.holds(node):
            job, row, is_holder = held
            legal = is_holder and row.state == State.RUNNING
            if self.expect(legal, lambda: job.move("work_done", actor=node, fenced=True)):
                row.state = State.FINALIZING

    def fail(self, node: str, _number: int) -> None:
        if held := self.holds(node):
            job, row, is_holder = held
            legal = is_holder and row.state in OPEN
            fields = {"error_code": "bad_data", "error_message": "Row 1 has no answer."}
            if self.expect(legal, lambda: job.move("fail", actor=node, fenced=True, **fields)):
                row.end(State.FAILED)

    def stopped(self, node: str, _number: int) -> None:
        if held := self.holds(node):
            job, row, is_holder = held
            legal = is_holder and row.state == State.CANCELLING
            if self.expect(legal, lambda: job.complete_stop(actor=node)):
                self.stop(row)

    def stop(self, row: Row) -> None:
        """Stop the model's job. Without a checkpoint nothing is kept."""
        row.keep = "" if row.keep == "checkpoint" and not row.has_checkpoint else row.keep
        row.end(State.CANCELLED)

    def give_back(self, node: str, number: int) -> None:
        if held := self.holds(node):
            job, row, is_holder = held
            counts_as_failure = number // 3 % 4 != 0
            legal = is_holder and row.state in OPEN
            if self.expect(legal, lambda: job.interrupt("drained", counts_as_failure=counts_as_failure)):
                row.failed_attempts = row.failed_attempts if counts_as_failure else 0
                row.ignored_attempts += int(not counts_as_failure)
                self.wait(row)

    def wait(self, row: Row) -> None:
        if row.keep == "adapter" and not row.has_checkpoint:
            row.keep, row.slot = "", None
            row.end(State.CANCELLED)
            return
        if row.failed_attempts >= MAX_FAILED_ATTEMPTS or row.attempt - row.ignored_attempts >= MAX_ATTEMPTS:
            row.slot = None
            row.end(State.FAILED)
            return
        row.state, row.slot = State.INTERRUPTED, None
        back_off = BACK_OFF[min(row.failed_attempts, len(BACK_OFF) - 1)]
        row.run_after = self.now + back_off.total_seconds()

    def dispatch(self) -> None:
        for job in Job.objects.with_expired_lease():
            row = self.rows[job.pk]
            assert row.lease_until < self.now + SLACK
            job.recover("not heard from")
            if row.state == State.CANCELLING:
                self.stop(row)
            else:
                self.wait(row)
        for job in Job.objects.due_for_retry():
            row = self.rows[job.pk]
            assert row.run_after <= self.now + SLACK
            job.requeue_or_fail()
            row.state = State.QUEUED
        live = [row for row in self.rows.values() if row.state in LIVE]
        assert all(row.lease_until >= self.now - SLACK for row in live), "an expired lease was overlooked"

    def pass_time(self, number: int) -> None:
        """Move every date back, because the database's clock cannot be moved."""
        seconds = (5, 40, 80, 125, 400, 400)[number % 6]
        self.skipped += seconds
        shift = timedelta(seconds=seconds)
        Job.objects.update(run_after=F("run_after") - shift, lease_until=F("lease_until") - shift)
        if number >= 12:
            self.dispatch()

    def compare(self) -> None:
        self.database_and_model_agree()
        self.history_is_whole()
        self.every_waiting_job_has_a_wake_up()

    def database_and_model_agree(self) -> None:
        facts = ("state", "attempt", "failed_attempts", "ignored_attempts", "keep")
        jobs = {pk: values for pk, *values in Job.objects.filter(pk__in=self.rows).values_list("pk", *facts)}
        assert jobs == {
            pk: [row.state, row.attempt, row.failed_attempts, row.ignored_attempts, row.keep]
            for pk, row in self.rows.items()
        }
        runs = TrainingRun.objects.filter(job__in=self.rows).values_list("pk", "outcome")
        assert dict(runs) == {run: end for row in self.rows.values() for run, end in row.arms.items()}
        made = Counter(Adapter.objects.filter(run__job__in=self.rows).values_list("run", flat=True))
        assert made == Counter(run for row in self.rows.values() for run in row.adapters)
        for row in self.rows.values():
            assert row.adapters == {run for run, end in row.arms.items() if end in KEPT}

    def history_is_whole(self) -> None:
        for event in JobEvent.objects.filter(job__in=self.rows, pk__gt=self.last_event).order_by("pk"):
            self.last_event = event.pk
            seq, state, attempt = self.histories.get(event.job_id, (0, None, 0))
            assert event.seq == seq + 1
            assert event.attempt == attempt + (event.event == "claim")
            events_seen[event.event] += 1
            if event.event in MOVES:
                sources, target = MOVES[event.event]
                assert event.from_state == state
                assert state in sources
                assert event.to_state == target
                state = State(event.to_state)
            else:
                state = State.QUEUED if event.event == "submit" else state
            self.histories[event.job_id] = (event.seq, state, event.attempt)
        assert {pk: known[1] for pk, known in self.histories.items()} == {
            pk: row.state for pk, row in self.rows.items()
        }

    def every_waiting_job_has_a_wake_up(self) -> None:
        woken = set(Outbox.objects.filter(job__in=self.rows, sent_at=None).values_list("job", flat=True))
        assert {pk for pk, row in self.rows.items() if row.state == State.QUEUED} <= woken
