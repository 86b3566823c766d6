"""Random walks over the job's state machine, with several workers and a jumping clock, beside a simple model.

`CHAOS_SEQUENCES` sets the number of walks of the long form.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dashboard.models import Job, Project, State
from dashboard.models.jobs.job_state import MOVES
from tests.conftest import make_base_model, make_dataset, make_run
from tests.dashboard.jobs.state_walk import NODES, Walk, events_seen, steps_taken

FINISHING = 19
SHORT, LONG = 8, int(os.environ.get("CHAOS_SEQUENCES", "500"))
# Step -> weight; the weights let most walks get far.
STEPS = {
    "submit": 3, "cancel": 3, "resume": 3, "claim": 8, "work": 5, "progress": 2, "step": 2,
    "checkpoint": 2, "renew": 1, "look": 1, "end_arm": 4, "finish": 3, "begin_to_save": 1, "fail": 1,
    "stopped": 2, "give_back": 5, "dispatch": 2, "pass_time": 5,
}  # fmt: skip
NAMES = [name for name, weight in STEPS.items() for _time in range(weight)]
Step = tuple[str, str, int]


def random_steps(seed: int, length: int) -> list[Step]:
    """Return independent random steps. Hypothesis finds the shortest failing prefix."""
    generator = random.Random(seed)
    choose = generator.choice
    return [(choose(NAMES), choose(sorted(NODES)), generator.randrange(24)) for _step in range(length)]


# Hypothesis repeats steps, which finds other faults than independent steps do.
drawn = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(sorted(NODES)), st.integers(0, 23)), min_size=20
)
independent = st.builds(random_steps, st.integers(0, 2**32), st.integers(60, 200))
walks = st.one_of(drawn, independent, independent, independent)


def summary(walks: int, seconds: float) -> str:
    """Return the numbers of steps and events, most frequent first."""
    steps, events = (
        ", ".join(f"{number} {name}" for name, number in counter.most_common())
        for counter in (steps_taken, events_seen)
    )
    return (
        f"{walks} walks on {connection.vendor} in {seconds / 60:.1f} min.\n"
        f"{steps_taken.total()} steps: {steps}.\n{events_seen.total()} events: {events}."
    )


@pytest.mark.django_db
@pytest.mark.parametrize("number", [SHORT, pytest.param(LONG, marks=pytest.mark.proof)])
def test_random_walks_agree_with_the_model(
    project: Project, measured: Callable[[str], None], number: int
) -> None:
    run = make_run(project, make_dataset(project), make_base_model(project))
    Job.objects.all().update(state=State.SUCCEEDED, finished_at="2026-01-01T00:00Z")

    # The short form repeats the same walks while the code stays the same.
    @settings(
        max_examples=number,
        derandomize=number == SHORT,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(walks)
    # One that finishes a job: what the others happen to do changes with any constant in the code.
    @example(random_steps(FINISHING, 200))
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
    steps_taken.clear()
    events_seen.clear()
    walk_and_forget()
    if number != SHORT:
        measured(summary(number, time.monotonic() - began))
    # A few walks do not happen to take the rare moves.
    expected = (
        {*MOVES, "finish", "discard"} if number != SHORT else {"claim", "interrupt", "requeue", "succeed"}
    )
    assert expected <= set(events_seen), f"the walks must take these moves: {events_seen}"
