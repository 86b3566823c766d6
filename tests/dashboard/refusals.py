"""How the API refuses: one shape for all."""

from __future__ import annotations

from typing import Any


def refusal(answer: Any, status: int) -> dict[str, Any]:
    """The error of an answer that must be a refusal."""
    assert answer.status_code == status, answer.content
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    return error
