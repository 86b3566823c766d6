"""The order of the queue: priority, fair share between projects, kind of job, then age."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from dashboard.models.jobs import queue_order
from dashboard.models.jobs.queue_order import WaitingJob


def jobs(
    project: int | None, count: int, first: int = 1, priority: int = 0, kind: str = "train"
) -> list[WaitingJob]:
    """Jobs of one project, numbered by age."""
    return [WaitingJob(pk, priority, project, kind) for pk in range(first, first + count)]


def claim_order(
    waiting: Iterable[WaitingJob], running: list[int | None], last_starts: Mapping[int | None, float]
) -> list[int]:
    return list(queue_order.claim_order(waiting, running, last_starts))


def test_one_project_is_served_by_age() -> None:
    assert claim_order(jobs(1, 3), [], {}) == [1, 2, 3]


def test_higher_priority_comes_first() -> None:
    waiting = jobs(1, 2) + jobs(2, 2, first=3, priority=1) + jobs(1, 1, first=5, priority=-1)
    assert claim_order(waiting, [2, 2], {}) == [3, 4, 1, 2, 5]


def test_running_jobs_count_towards_the_share() -> None:
    waiting = jobs(1, 2) + jobs(2, 4, first=3)
    assert claim_order(waiting, [1, 1, 1], {1: 9.0}) == [3, 4, 5, 1, 6, 2]


def test_the_project_served_last_comes_after_the_others() -> None:
    assert claim_order(jobs(1, 2) + jobs(2, 2, first=3), [], {1: 9.0}) == [3, 1, 4, 2]


def test_the_earlier_kind_comes_first_within_a_project() -> None:
    kinds = ["push", "train", "judge", "evaluate", "inspect", "import", "export"]
    waiting = [WaitingJob(pk, 0, 1, kind) for pk, kind in enumerate(kinds)]
    assert [kinds[pk] for pk in claim_order(waiting, [], {})] == [
        "import", "inspect", "evaluate", "judge", "push", "train", "export",
    ]  # fmt: skip


def test_a_higher_priority_comes_before_an_earlier_kind() -> None:
    assert claim_order(jobs(1, 1, kind="evaluate") + jobs(1, 1, first=2, priority=1), [], {}) == [2, 1]


def test_scores_of_one_project_leave_the_share_of_another() -> None:
    scores = jobs(1, 3, first=3, kind="evaluate")
    assert claim_order(jobs(1, 1) + jobs(2, 1, first=2) + scores, [1], {1: 9.0}) == [2, 3, 4, 5, 1]


projects = st.sampled_from([1, 2, 3, None])
kinds = st.sampled_from(["import", "evaluate", "train", "export"])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(projects, st.integers(-1, 1), kinds), min_size=1, max_size=20),
    st.lists(projects, max_size=4),
)
def test_jobs_are_claimed_in_the_shown_order_while_none_ends(
    rows: list[tuple[int | None, int, str]], history: list[int | None]
) -> None:
    waiting = {
        pk: WaitingJob(pk, rank, project, kind) for pk, (project, rank, kind) in enumerate(rows, start=1)
    }
    running = list(history)
    last_starts = {project: float(moment) for moment, project in enumerate(history, start=1)}
    shown = claim_order(waiting.values(), running, last_starts)
    claimed = []
    while waiting:
        job = waiting.pop(claim_order(waiting.values(), running, last_starts)[0])
        claimed.append(job.pk)
        running.append(job.project)
        last_starts[job.project] = float(len(running))
    assert claimed == shown


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(projects, kinds), max_size=30), projects)
def test_one_job_of_a_project_waits_for_at_most_one_round(
    others: list[tuple[int | None, str]], late: int | None
) -> None:
    waiting = [
        WaitingJob(pk, 0, project, kind)
        for pk, (project, kind) in enumerate(others, start=1)
        if project != late
    ]
    waiting.append(WaitingJob(99, 0, late, "train"))
    assert claim_order(waiting, [], {}).index(99) < len({job.project for job in waiting})
