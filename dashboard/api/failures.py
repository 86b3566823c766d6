"""The error of a failed object."""

from __future__ import annotations

from dashboard.api.answer import Answer
from dashboard.models import Job


class Failure(Answer):
    """A stable code and a message."""

    code: str
    message: str


def failure_of(job: Job | None) -> Failure | None:
    """Return the error of a failed job."""
    error = job.error if job else None
    return Failure(**error) if error else None
