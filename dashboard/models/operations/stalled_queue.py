"""Queues in which no job starts because no worker takes their jobs, and the sentence for pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from django.db import models
from django.utils.translation import gettext_lazy

from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import State
from dashboard.models.jobs.worker_node import WorkerNode

ALL_QUEUES = ""
WORK = {
    Job.Queue.GPU: gettext_lazy("training and evaluation"),
    Job.Queue.CPU: gettext_lazy("imports, inspections, exports and judge evaluations"),
    Job.Queue.SERVE: gettext_lazy("the playground and the chat API"),
    ALL_QUEUES: gettext_lazy("any job"),
}


class StallReason(models.TextChoices):
    """The state of a queue's workers. The label is the sentence that pages show."""

    MISSING = (
        "missing",
        gettext_lazy(
            "No worker is available for %(work)s. Waiting jobs are saved and start when a worker is back."
        ),
    )
    PAUSED = (
        "paused",
        gettext_lazy(
            "No worker accepts %(work)s while workers are paused. Waiting jobs start when one is resumed."
        ),
    )
    DRAINING = (
        "draining",
        gettext_lazy(
            "Workers are shutting down and do not accept %(work)s. Waiting jobs start when one is restarted."
        ),
    )


@dataclass(frozen=True)
class StalledQueue:
    """A queue, or all of them, without a worker that takes jobs."""

    queue: str
    reason: StallReason

    @property
    def text(self) -> str:
        """Return the sentence for pages."""
        return str(self.reason.label) % {"work": WORK[self.queue]}

    @property
    def is_intended(self) -> bool:
        """Return whether a user paused the workers, so that nothing needs fixing."""
        return self.reason == StallReason.PAUSED


def stalled_queues(alive: Iterable[WorkerNode] | None = None) -> dict[str, StalledQueue]:
    """Return the queues whose jobs cannot start now. `alive`: the nodes with a heartbeat, if known."""
    reasons = dict.fromkeys(Job.Queue.values, StallReason.MISSING)
    if alive is None:
        alive = WorkerNode.objects.alive().only("kind", "queue", "draining", "paused_at").order_by()
    for node in alive:
        reason = reasons.get(node.queue)
        if reason is None or node.kind != WorkerNode.Kind.WORKER:
            continue  # another worker takes its jobs
        if node.draining:
            reasons[node.queue] = StallReason.DRAINING if reason == StallReason.MISSING else reason
        elif node.paused_at:
            reasons[node.queue] = StallReason.PAUSED
        else:
            del reasons[node.queue]
    return {queue: StalledQueue(queue, reason) for queue, reason in reasons.items()}


def stalled_queue_of(job: Job | None) -> StalledQueue | None:
    """Return the stalled queue that a queued job waits in, if it is stalled."""
    return stalled_queues().get(job.queue) if job and job.state == State.QUEUED else None


def merge_stalled(stalled: Mapping[str, StalledQueue]) -> list[StalledQueue]:
    """Return the queues as one entry when all are stalled for the same reason."""
    reasons = {queue.reason for queue in stalled.values()}
    if len(stalled) == len(Job.Queue.values) and len(reasons) == 1:
        return [StalledQueue(ALL_QUEUES, reasons.pop())]
    return list(stalled.values())
