"""Checks of the API's error format."""

from __future__ import annotations

from typing import Any


def refusal(answer: Any, status: int) -> dict[str, Any]:
    """Return the error of an answer with this status."""
    assert answer.status_code == status, answer.content
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    return error
