"""Whose turn it is: fair turns between projects; in a project priority, then fair turns between its people.

A turn goes to whoever holds the fewest workers, and among equals to whoever was served longest ago, so
nobody's many jobs hold up another's one. Arithmetic over numbers; knows nothing of rows or the database.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

# The project and the person that a job belongs to; None is the installation's own work.
Owner = tuple[int | None, int | None]


@dataclass(frozen=True)
class Waiting:
    """What the order needs to know of a waiting job."""

    pk: int
    priority: int
    project: int | None
    person: int | None
    place: int | None  # given by a manager: such jobs come first in their project
    own_place: int | None  # given by the person, among their own jobs

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        return self.project, self.person

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Its order among the jobs of the same person and priority: places first, then age."""
        return self.place is None, self.place or 0, self.own_place or self.pk


@dataclass
class Turns:
    """Who holds how many workers, and when each project and person was last served."""

    held: Counter[Owner | int | None] = field(default_factory=Counter)
    served: dict[Owner | int | None, float] = field(default_factory=dict)
    clock: float = 0.0

    @classmethod
    def after(cls, holders: Iterable[Owner], served: Mapping[Owner, float]) -> Turns:
        """Turns as they stand: one entry in `holders` per job at work, and the last start per owner."""
        turns = cls(clock=max(served.values(), default=0.0))
        for project, person in holders:
            turns.held.update([project, (project, person)])
        for (project, person), moment in served.items():
            turns.served[project, person] = moment
            turns.served[project] = max(moment, turns.served.get(project, 0.0))
        return turns

    def take(self, owner: Owner) -> None:
        """A job of `owner` starts."""
        self.clock += 1
        for key in (owner, owner[0]):
            self.held[key] += 1
            self.served[key] = self.clock

    def give_back(self, owner: Owner) -> None:
        """A job of `owner` ends."""
        self.held.subtract([owner, owner[0]])

    def due(self, key: Owner | int | None, oldest: int) -> tuple[int, float, int]:
        """The lower, the sooner. `oldest` decides between those who were never served."""
        return self.held[key], self.served.get(key, 0.0), oldest


def claim_order(
    waiting: Iterable[Waiting], working: Iterable[Owner], turns: Turns, slots: int | None = None
) -> Iterator[int]:
    """The waiting jobs' numbers in the order in which they will be claimed.

    `working` are the jobs that will free a worker, in the order of their starts; `turns` counts them already.
    With `slots`, only so many work at once and the one that started first ends first; None: nothing ends.
    """
    at_work = deque(working)
    projects: dict[int | None, list[Waiting]] = {}
    for job in waiting:
        projects.setdefault(job.project, []).append(job)
    # Whoever was never served is as old as their oldest job, so this need not follow what is taken.
    oldest = {project: min(job.pk for job in jobs) for project, jobs in projects.items()}
    lines = {project: lines_of(jobs) for project, jobs in projects.items()}
    while lines:
        while slots is not None and len(at_work) >= max(1, slots):
            turns.give_back(at_work.popleft())
        project = min(lines, key=lambda one: turns.due(one, oldest[one]))
        job = lines[project][0].next(turns)
        if not lines[project][0].count:
            lines[project].popleft()
        if not lines[project]:
            del lines[project]
        turns.take(job.owner)
        at_work.append(job.owner)
        yield job.pk


def lines_of(jobs: Iterable[Waiting]) -> deque[Line]:
    """One line per priority, the highest first."""
    by_priority = sorted(jobs, key=lambda job: -job.priority)
    return deque(Line(list(level)) for _priority, level in groupby(by_priority, key=lambda job: job.priority))


class Line:
    """The waiting jobs of one project and priority."""

    def __init__(self, jobs: list[Waiting]) -> None:
        self.count = len(jobs)
        ranked = sorted(jobs, key=lambda job: job.rank)
        self.placed = deque(job for job in ranked if job.place is not None)
        self.people: dict[int | None, deque[Waiting]] = {}
        for job in ranked:
            if job.place is None:
                self.people.setdefault(job.person, deque()).append(job)
        self.oldest_of = {person: min(job.pk for job in own) for person, own in self.people.items()}

    def next(self, turns: Turns) -> Waiting:
        """Take the job whose turn it is out of the line."""
        self.count -= 1
        if self.placed:
            return self.placed.popleft()
        project = next(iter(self.people.values()))[0].project
        person = min(self.people, key=lambda one: turns.due((project, one), self.oldest_of[one]))
        job = self.people[person].popleft()
        if not self.people[person]:
            del self.people[person]
        return job
