"""The order of the queue: priority, fair share between projects, kind of job, then age."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

# The kinds that come before all others of the same project. A training needs an imported dataset, and scores
# show after minutes whether a further training of days is worth its time.
EARLY_KINDS = ("import", "inspect", "evaluate", "judge")


class WaitingJob(NamedTuple):
    """The facts that decide the position of a waiting job. `project` is None for jobs without one."""

    pk: int
    priority: int
    project: int | None
    kind: str

    @property
    def rank(self) -> tuple[int, int, int]:
        """Return what sorts the jobs of one project: priority, kind, then age."""
        kind = EARLY_KINDS.index(self.kind) if self.kind in EARLY_KINDS else len(EARLY_KINDS)
        return -self.priority, kind, self.pk


def claim_order(
    waiting: Iterable[WaitingJob],
    running: Iterable[int | None],
    last_starts: Mapping[int | None, float],
) -> Iterator[int]:
    """Yield the ids of waiting jobs in the order in which workers claim them.

    `running`: the project of each running job. `last_starts`: when a job of a project last started. Among
    jobs of one priority the project that holds the fewest workers comes first, then the one that was served
    longest ago. Within a project imports come before scores, scores before trainings, then the oldest job.
    """
    held, served = Counter(running), dict(last_starts)
    later = count(max(served.values(), default=0.0) + 1)
    lines: dict[int | None, deque[WaitingJob]] = {}
    for job in sorted(waiting, key=lambda job: job.rank):
        lines.setdefault(job.project, deque()).append(job)

    def rank(project: int | None) -> tuple[int, int, float, int, int | None]:
        job = lines[project][0]
        return -job.priority, held[project], served.get(project, 0.0), job.pk, project

    heap = [rank(project) for project in lines]
    heapify(heap)
    while heap:
        *_rank, project = heappop(heap)
        yield lines[project].popleft().pk
        held[project] += 1
        served[project] = next(later)
        if lines[project]:
            heappush(heap, rank(project))


@lru_cache(maxsize=8)
def whole_claim_order(
    waiting: tuple[WaitingJob, ...],
    running: tuple[int | None, ...],
    last_starts: tuple[tuple[int | None, float], ...],
) -> tuple[int, ...]:
    """Return the same as a whole. Pages ask for the order of the same jobs again and again."""
    return tuple(claim_order(waiting, running, dict(last_starts)))
