"""Why an object failed, as every object says it."""

from __future__ import annotations

from ninja import Schema


class Failure(Schema):
    """A stable code, and a sentence for people."""

    code: str
    message: str
