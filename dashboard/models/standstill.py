"""Why nothing of a queue starts: nobody is there who takes its jobs. One sentence for every page.

A queue whose own workers are gone or paused stands still, however many work for the other one.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db import models
from django.utils.translation import gettext_lazy as _

from dashboard.models.job import Job
from dashboard.models.job_state import State
from dashboard.models.worker_node import WorkerNode

EVERY = ""  # in place of one queue


class Cause(models.TextChoices):
    """What has become of the workers. The labels say what the jobs wait for."""

    GONE = "gone", _("They are saved and start by themselves as soon as one is back.")
    PAUSED = "paused", _("They are saved and start as soon as one is resumed.")
    LEAVING = "leaving", _("They are saved and start as soon as one has been started again.")


SENTENCES = {
    (Job.Queue.GPU, Cause.GONE): _("No worker for training answers, so trainings and evaluations wait."),
    (Job.Queue.GPU, Cause.PAUSED): _(
        "Every worker for training is paused, so trainings and evaluations wait."
    ),
    (Job.Queue.GPU, Cause.LEAVING): _(
        "Every worker for training is shutting down, so trainings and evaluations wait."
    ),
    (Job.Queue.CPU, Cause.GONE): _(
        "No worker for light work answers, so imports, inspections and judge evaluations wait."
    ),
    (Job.Queue.CPU, Cause.PAUSED): _(
        "Every worker for light work is paused, so imports, inspections and judge evaluations wait."
    ),
    (Job.Queue.CPU, Cause.LEAVING): _(
        "Every worker for light work is shutting down, so imports, inspections and judge evaluations wait."
    ),
    (EVERY, Cause.GONE): _("No worker answers, so all jobs wait."),
    (EVERY, Cause.PAUSED): _("All workers are paused, so all jobs wait."),
    (EVERY, Cause.LEAVING): _("All workers are shutting down, so all jobs wait."),
}


@dataclass(frozen=True)
class Standstill:
    """Nobody takes jobs of this queue, and why."""

    queue: str
    cause: Cause

    @property
    def text(self) -> str:
        """Which work waits, why, and for what."""
        return f"{SENTENCES[self.queue, self.cause]} {self.cause.label}"

    @property
    def is_meant(self) -> bool:
        """Whether somebody has asked for it, so that there is nothing to mend."""
        return self.cause == Cause.PAUSED


def standstills() -> dict[str, Standstill]:
    """The queues of which nothing starts now, in one query."""
    causes = dict.fromkeys(Job.Queue.values, Cause.GONE)
    workers = WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.WORKER)
    for queue, draining, paused_at in workers.values_list("queue", "draining", "paused_at"):
        known = causes.get(queue)
        if known is None:
            continue  # somebody takes jobs of it
        if draining:
            causes[queue] = Cause.LEAVING if known == Cause.GONE else known
        elif paused_at:
            causes[queue] = Cause.PAUSED
        else:
            del causes[queue]
    return {queue: Standstill(queue, cause) for queue, cause in causes.items()}


def standstill_of(job: Job | None) -> Standstill | None:
    """Why this job waits for longer than its turn; None where it does not, or somebody takes its kind."""
    return standstills().get(job.queue) if job and job.state == State.QUEUED else None


def told(found: dict[str, Standstill]) -> list[Standstill]:
    """What to say of them: the same of every queue is said once."""
    causes = {one.cause for one in found.values()}
    if len(found) == len(Job.Queue.values) and len(causes) == 1:
        return [Standstill(EVERY, causes.pop())]
    return list(found.values())
