"""Why an object failed, as every object says it."""

from __future__ import annotations

from ninja import Schema

from dashboard.models import Job


class Failure(Schema):
    """A stable code, and a sentence for people."""

    code: str
    message: str


def failure_of(job: Job | None) -> Failure | None:
    """Why this job failed; None for any that has not."""
    error = job.error if job else None
    return Failure(**error) if error else None
