"""Lists as {"object": "list", "data": […], "has_more": bool}. Clients page by the id of the last item."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

from django.utils.translation import gettext as _
from ninja import Query

from dashboard.api.refusals import Refusal, invalid
from dashboard.models.accounts.project import parse_id

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str, Query(max_length=200)]
DEFAULT_LIMIT = 20


def listing(items: Iterable[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return the first `limit` of these items, and whether there are more."""
    page: Sequence[dict[str, Any]] = list(islice(items, limit + 1))
    shown = page[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(page) > limit,
    }


def number_in(identifier: str, prefix: str, field: str | None, noun: str) -> int:
    """Return the primary key in an id such as `ftjob-12`, or refuse it as unknown."""
    number = parse_id(identifier.removeprefix(prefix)) if identifier.startswith(prefix) else None
    if number is None:
        raise missing(field, noun)
    return number


def missing(field: str | None, noun: str) -> Refusal:
    """Return the error for an id that names nothing in the project."""
    return Refusal(404, "not_found", _("There is no such %(noun)s in this project.") % {"noun": noun}, field)


def wrong_after() -> Refusal:
    """Return the error for a cursor that is not of this list."""
    return invalid("after", _("`after` must be the id of an item of this list."))


def seconds(time: datetime | None) -> int | None:
    """Return a time as Unix seconds."""
    return int(time.timestamp()) if time else None
