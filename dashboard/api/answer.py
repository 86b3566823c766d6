"""The base class of the JSON objects in answers, which are made from plain values."""

from __future__ import annotations

import pydantic


class Answer(pydantic.BaseModel):
    """An object of an answer. Ninja's Schema also reads model rows, and checks plain values more slowly."""
