"""Whose turn it is: nobody starves, and the order that is shown is the order in which jobs are claimed."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard.models.queue_order import Owner, Turns, Waiting, claim_order

ANN, BOB, CAT = (1, 11), (1, 12), (2, 13)


def jobs(owner: Owner, count: int, first: int = 1, priority: int = 0) -> list[Waiting]:
    """So many jobs of one person, numbered by age."""
    return [Waiting(pk, priority, *owner, None, None) for pk in range(first, first + count)]


def order(
    waiting: list[Waiting],
    working: tuple[Owner, ...] = (),
    served: Mapping[Owner, float] | None = None,
    slots: int | None = None,
) -> list[int]:
    return list(claim_order(waiting, working, Turns.after(working, served or {}), slots))


def test_one_person_is_served_by_age() -> None:
    assert order(jobs(ANN, 3)) == [1, 2, 3]


def test_fifty_jobs_do_not_hold_up_a_colleagues_one() -> None:
    assert order(jobs(ANN, 50) + jobs(BOB, 1, first=51)).index(51) == 1


def test_fifty_jobs_do_not_hold_up_another_projects_one() -> None:
    many = jobs(ANN, 25) + jobs(BOB, 25, first=26)
    assert order(many + jobs(CAT, 1, first=51)).index(51) == 1


def test_a_project_with_many_people_gets_no_more_turns() -> None:
    waiting = jobs(ANN, 4) + jobs(BOB, 4, first=5) + jobs(CAT, 4, first=9)
    assert order(waiting) == [1, 9, 5, 10, 2, 11, 6, 12, 3, 7, 4, 8]


def test_jobs_at_work_count_as_turns() -> None:
    held = (ANN, ANN, ANN)
    assert order(jobs(ANN, 2) + jobs(CAT, 4, first=3), held, {ANN: 9.0}) == [3, 4, 5, 1, 6, 2]


def test_who_was_served_last_waits_for_the_others_although_the_work_has_ended() -> None:
    assert order(jobs(ANN, 2) + jobs(CAT, 2, first=3), served={ANN: 9.0}) == [3, 1, 4, 2]


def test_priority_comes_before_the_turns_of_people_but_takes_no_turn_from_another_project() -> None:
    waiting = jobs(ANN, 2, priority=1) + jobs(CAT, 2, first=3) + jobs(BOB, 1, first=5)
    assert order(waiting) == [1, 3, 2, 4, 5]
    low = jobs(BOB, 1, priority=-1) + jobs(ANN, 2, first=2)
    assert order(low) == [2, 3, 1]


def test_a_managers_place_comes_before_turns_and_only_within_the_project() -> None:
    waiting = jobs(ANN, 3) + jobs(BOB, 1, first=4) + jobs(CAT, 2, first=5)
    waiting[2] = replace(waiting[2], place=1)
    assert order(waiting) == [3, 5, 4, 6, 1, 2]


def test_ones_own_places_order_ones_own_jobs() -> None:
    waiting = jobs(ANN, 3)
    waiting[0], waiting[2] = replace(waiting[0], own_place=3), replace(waiting[2], own_place=1)
    assert order(waiting) == [3, 2, 1]


people = st.sampled_from([ANN, BOB, (1, None), CAT, (2, 14), (None, None)])
queues = st.lists(
    st.tuples(people, st.integers(-1, 1), st.one_of(st.none(), st.integers(1, 3))), min_size=1, max_size=20
)


@settings(max_examples=300, deadline=None)
@given(queues, st.lists(people, max_size=4), st.integers(1, 4))
def test_the_shown_order_is_the_order_of_claims(
    rows: list[tuple[Owner, int, int | None]], history: list[Owner], slots: int
) -> None:
    """Workers that end in the order of their starts claim one job after another, each time asking anew."""
    waiting = [
        Waiting(pk, priority, owner[0], owner[1], place, None)
        for pk, (owner, priority, place) in enumerate(rows, start=1)
    ]
    served = {owner: float(moment) for moment, owner in enumerate(history, start=1)}
    working = deque(history[-slots:])
    shown = order(waiting, tuple(working), served, slots)
    assert sorted(shown) == [job.pk for job in waiting]
    claimed, left = [], {job.pk: job for job in waiting}
    while left:
        while len(working) >= slots:
            working.popleft()
        pk = next(claim_order(left.values(), (), Turns.after(working, served)))
        job = left.pop(pk)
        claimed.append(pk)
        working.append(job.owner)
        served[job.owner] = float(len(history) + len(claimed))
    assert claimed == shown


@settings(max_examples=200, deadline=None)
@given(st.lists(people, min_size=1, max_size=30), people)
def test_nobody_waits_longer_than_one_round(owners: list[Owner], late: Owner) -> None:
    """A person's one job is reached within a turn of each project, times a turn of each person in theirs."""
    others = [owner for owner in owners if owner != late]
    waiting = [Waiting(pk, 0, *owner, None, None) for pk, owner in enumerate([*others, late], start=1)]
    projects = {owner[0] for owner in [*others, late]}
    colleagues = {owner for owner in [*others, late] if owner[0] == late[0]}
    assert order(waiting).index(len(waiting)) < len(projects) * len(colleagues)
