"""The base class of the JSON objects in answers, which are made from plain values."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import pydantic
import pydantic_core
from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpResponse


def write_time(time: datetime) -> str:
    """Return a time as Django writes it in JSON: with milliseconds and Z."""
    return str(DjangoJSONEncoder().default(time))


# Pydantic writes lists, and Django's encoder all other answers.
Time = Annotated[
    datetime,
    pydantic.PlainSerializer(write_time, when_used="json"),
    pydantic.WithJsonSchema({"type": "string", "format": "date-time"}),
]


def write(values: dict[str, Any]) -> HttpResponse:
    """Return plain values with exactly the fields of a long answer as JSON, without a check of each.

    NaN and infinity, which JSON does not have, become null.
    """
    return HttpResponse(
        pydantic_core.to_json(values, inf_nan_mode="null"), content_type="application/json; charset=utf-8"
    )


class Answer(pydantic.BaseModel):
    """An object of an answer. Ninja's Schema also reads model rows, and checks plain values more slowly."""
