"""Random walks over the state machine, with several workers and a clock that jumps, beside a simple model.

A worker here is the job as it was when it was claimed: it may sleep through anything and then go on, which is
what a paused process does. `CHAOS_SEQUENCES` sets how many walks are made.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dashboard.models import Adapter, IllegalMove, Job, JobEvent, Outbox, Project, State, TrainingRun
from dashboard.models.adapters.adapter import WEIGHTS
from dashboard.models.jobs.job import BACK_OFF, MAX_ATTEMPTS, MAX_FAILED_ATTEMPTS
from dashboard.models.jobs.job_state import LEASE, LIVE, MOVES, TERMINAL, WAITING
from dashboard.models.training.resume import resume
from tests.conftest import make_base_model, make_dataset, make_run
from workers.supervision.recorders import cancel_without_result, finish_job

SHORT = 120
SEQUENCES = int(os.environ.get("CHAOS_SEQUENCES", SHORT))
# Two training nodes with a slot each, one node for light work.
NODES = {"gpu0": ("gpu", "gpu0@host"), "gpu1": ("gpu", "gpu1@host"), "cpu": ("cpu", None)}
OPEN = tuple(state for state in LIVE if state != State.CANCELLING)
KEPT = ("succeeded", "stopped_early")
# How often each step was taken, and how often each event then stood in a history.
taken: Counter[str] = Counter()
walked: Counter[str] = Counter()
# How often each step is taken: most walks should get far.
STEPS = {
    "submit": 3, "cancel": 3, "resume": 3, "claim": 8, "work": 5, "progress": 2, "step": 2,
    "checkpoint": 2, "renew": 1, "look": 1, "end_arm": 4, "finish": 3, "begin_to_save": 1, "fail": 1,
    "stopped": 2, "give_back": 5, "dispatch": 2, "pass_time": 5,
}  # fmt: skip
# The database takes real time as well, and its clock is not read together with ours.
SLACK = 15.0
KEEPS = ("", "adapter", "checkpoint")
NAMES = [name for name, weight in STEPS.items() for _time in range(weight)]
Step = tuple[str, str, int]


def wander(seed: int, length: int) -> list[Step]:
    """Steps without any preference; of a walk that fails, the shortest beginning that fails is found."""
    dice = random.Random(seed)
    return [(dice.choice(NAMES), dice.choice(sorted(NODES)), dice.randrange(24)) for _step in range(length)]


# Hypothesis likes to repeat itself, which finds other faults than wandering does.
drawn = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(sorted(NODES)), st.integers(0, 23)), min_size=20
)
wandered = st.builds(wander, st.integers(0, 2**32), st.integers(60, 200))
walks = st.one_of(drawn, wandered, wandered, wandered)


@dataclass
class Row:
    """What must be true of a job."""

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
    """The database on one side, `Row`s on the other; after each step they must agree."""

    def __init__(self, project: Project, run: TrainingRun) -> None:
        self.project, self.run = project, run
        self.skipped, self.began = 0.0, time.monotonic()
        self.rows: dict[int, Row] = {}
        self.held: dict[str, Job] = {}
        self.last_event = 0
        self.histories: dict[int, tuple[int, State | None, int]] = {}

    def take(self, name: str, node: str, number: int) -> None:
        """One step; `number` settles what else there is to choose."""
        taken[name] += 1
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
        """The database's clock: real seconds and those that were skipped."""
        return self.skipped + time.monotonic() - self.began

    def clear(self) -> None:
        for pk in self.rows:
            shutil.rmtree(Job(pk=pk).checkpoint_folder(), ignore_errors=True)

    def pick(self, number: int) -> tuple[Job, Row]:
        pk = sorted(self.rows)[number % len(self.rows)]
        return Job.objects.get(pk=pk), self.rows[pk]

    def holds(self, node: str) -> tuple[Job, Row, bool] | None:
        """The job as the worker remembers it, the truth, and whether the two still belong together."""
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

    # People ----------------------------------------------------------------------------------------------

    def submit(self) -> None:
        arms = (0, 1, 3, 1, 2, 1)[len(self.rows) % 6]
        if sum(row.state not in TERMINAL for row in self.rows.values()) == 6:
            return
        if not arms:
            job = Job.objects.submit(Job.Kind.IMPORT, {}, project=self.project, by=None)
            self.rows[job.pk] = Row("cpu", run_after=self.now)
            return
        job = Job.objects.submit(Job.Kind.TRAIN, {}, project=self.project, by=None)
        # Another test may have had a job of this number.
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
        """Whether a whole job may be stopped like this; then the row is."""
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

    # Workers ---------------------------------------------------------------------------------------------

    def claim(self, node: str) -> None:
        queue, slot = NODES[node]
        asked = self.now
        job = Job.objects.claim(queue, worker=node, slot=slot, host="host", pid=1, pid_started=1.0)
        ready = {
            pk
            for pk, row in self.rows.items()
            if row.queue == queue and row.state == State.QUEUED and row.run_after <= self.now + SLACK
        }
        surely = any(self.rows[pk].run_after <= asked - SLACK for pk in ready)
        taken = slot and any(row.slot == slot for row in self.rows.values() if row.state in LIVE)
        if job is None:
            assert taken or not surely
            return
        assert not taken
        assert job.pk in ready
        row = self.rows[job.pk]
        row.state, row.attempt, row.failed_attempts, row.step = (
            State.STARTING,
            row.attempt + 1,
            row.failed_attempts + 1,
            0,
        )
        row.slot, row.lease_until = slot, self.now + LEASE.total_seconds()
        self.held[node] = job

    def progress(self, node: str, _number: int) -> None:
        if found := self.holds(node):
            job, row, mine = found
            legal = mine and row.state == State.STARTING
            if self.expect(legal, lambda: job.move("progress", actor=node, fenced=True)):
                row.state = State.RUNNING

    def step(self, node: str, _number: int) -> None:
        if found := self.holds(node):
            job, row, mine = found
            assert job.update_progress(step=F("step") + 1, failed_attempts=0) == mine
            if mine:
                row.step, row.failed_attempts = row.step + 1, 0

    def checkpoint(self, node: str, _number: int) -> None:
        if (found := self.holds(node)) and found[2] and found[1].step and found[1].arms:
            folder = found[0].checkpoint_folder() / "00000001"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "manifest.json").write_text(json.dumps({"step": 1, "files": {}}))
            found[1].has_checkpoint = True

    def work(self, node: str, number: int) -> None:
        """A good stretch of it at once; steps drawn one by one seldom get that far."""
        for act in (self.progress, self.step, self.checkpoint):
            act(node, number)

    def renew(self, node: str, _number: int) -> None:
        if found := self.holds(node):
            job, row, mine = found
            assert job.renew_lease() == mine
            if mine:
                row.lease_until = self.now + LEASE.total_seconds()

    def look(self, node: str, _number: int) -> None:
        if found := self.holds(node):
            job, row, mine = found
            stopping = {"checkpoint": "park"}.get(row.keep, "cancel")
            going_on = "finish" if row.keep == "adapter" else ""
            wanted = stopping if row.state == State.CANCELLING else going_on
            assert job.read_stop_request() == (wanted if mine else None)

    def end_arm(self, node: str, number: int) -> None:
        found = self.holds(node)
        if not found or not found[1].arms:
            return
        job, row, mine = found
        pk = sorted(row.arms)[number % len(row.arms)]
        outcome = (*KEPT, "failed", "cancelled")[number // 3 % 4]
        run = TrainingRun.objects.get(pk=pk)
        with transaction.atomic():
            may = job.may_commit()
            assert may == (mine and row.state in OPEN)
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
        if found := self.holds(node):
            job, row, mine = found
            if row.arms and not all(row.arms.values()):
                return

            def commit() -> None:
                with transaction.atomic():
                    finish_job(job)

            if row.arms and set(row.arms.values()) == {"cancelled"}:
                if self.expect(mine and row.state in OPEN, lambda: cancel_without_result(job)):
                    row.keep = ""
                    row.end(State.CANCELLED)
            elif self.expect(mine and row.state in (State.RUNNING, State.FINALIZING), commit):
                row.end(State.SUCCEEDED)

    def begin_to_save(self, node: str, _number: int) -> None:
        if found := self.holds(node):
            job, row, mine = found
            legal = mine and row.state == State.RUNNING
            if self.expect(legal, lambda: job.move("work_done", actor=node, fenced=True)):
                row.state = State.FINALIZING

    def fail(self, node: str, _number: int) -> None:
        if found := self.holds(node):
            job, row, mine = found
            legal = mine and row.state in OPEN
            fields = {"error_code": "bad_data", "error_message": "Row 1 has no answer."}
            if self.expect(legal, lambda: job.move("fail", actor=node, fenced=True, **fields)):
                row.end(State.FAILED)

    def stopped(self, node: str, _number: int) -> None:
        if found := self.holds(node):
            job, row, mine = found
            legal = mine and row.state == State.CANCELLING
            if self.expect(legal, lambda: job.complete_stop(actor=node)):
                self.stop(row)

    def stop(self, row: Row) -> None:
        """What was to be kept is, where there is anything."""
        row.keep = "" if row.keep == "checkpoint" and not row.has_checkpoint else row.keep
        row.end(State.CANCELLED)

    def give_back(self, node: str, number: int) -> None:
        if found := self.holds(node):
            job, row, mine = found
            counts_as_failure = number // 3 % 4 != 0
            legal = mine and row.state in OPEN
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

    # Dispatcher and clock --------------------------------------------------------------------------------

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
        """The database's clock cannot be moved, so every date moves the other way."""
        seconds = (5, 40, 80, 125, 400, 400)[number % 6]
        self.skipped += seconds
        shift = timedelta(seconds=seconds)
        Job.objects.update(run_after=F("run_after") - shift, lease_until=F("lease_until") - shift)
        if number >= 12:
            self.dispatch()

    # What always holds -----------------------------------------------------------------------------------

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
            walked[event.event] += 1
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


def said(seconds: float) -> str:
    """What the walks came to, most frequent first."""
    counts = (
        ", ".join(f"{number} {name}" for name, number in kind.most_common()) for kind in (taken, walked)
    )
    steps, events = counts
    return (
        f"{SEQUENCES} walks on {connection.vendor} in {seconds / 60:.1f} min.\n"
        f"{taken.total()} steps: {steps}.\n{walked.total()} events: {events}."
    )


@pytest.mark.django_db
def test_no_walk_leads_where_no_move_leads(project: Project, measured: Callable[[str], None]) -> None:
    run = make_run(project, make_dataset(project), make_base_model(project))
    Job.objects.all().update(state=State.SUCCEEDED, finished_at="2026-01-01T00:00Z")

    # The short form makes the same walks each time, so that it never misses a move by chance.
    @settings(
        max_examples=SEQUENCES,
        derandomize=SEQUENCES == SHORT,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(walks)
    def walk_and_forget(steps: list[Step]) -> None:
        walk = Walk(project, run)
        try:
            with transaction.atomic():
                for step in [("submit", "", 0)] * 3 + steps:
                    walk.take(*step)
                transaction.set_rollback(True)
        finally:
            walk.clear()

    began = time.monotonic()
    taken.clear()
    walked.clear()
    walk_and_forget()
    if SEQUENCES > SHORT:
        measured(said(time.monotonic() - began))
    assert {*MOVES, "finish", "discard"} <= set(walked), f"the walks must come everywhere: {walked}"
