"""Lists: {"data": […], "next": cursor or null}, newest first. A cursor names a row, so pages never shift."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext as _
from ninja import Field, Schema
from ninja.pagination import PaginationBase

from dashboard.api.refusals import invalid, refuse_others


@dataclass(frozen=True)
class Rows:
    """What a list function returns: its rows, and how one of them is shown."""

    rows: QuerySet[Any]
    show: Callable[[Any], Any]


class Newest(PaginationBase):
    """Pages of rows, the highest id first."""

    class Input(Schema):
        """What a caller may ask for."""

        limit: int = Field(50, ge=1, le=200)
        cursor: str | None = None

    class Output(Schema):
        """One page."""

        data: list[Any]
        next: str | None

    items_attribute = "data"

    def paginate_queryset(
        self, queryset: Any, pagination: Any, request: HttpRequest, **params: Any
    ) -> dict[str, Any]:
        """The rows after the cursor, and the cursor of the page after them."""
        refuse_others(list(request.GET), ["limit", "cursor", *params])
        listed: Rows = queryset
        rows = listed.rows.order_by("-pk")
        if pagination.cursor is not None:
            rows = rows.filter(pk__lt=row_of(pagination.cursor))
        page = list(rows[: pagination.limit + 1])
        shown = page[: pagination.limit]
        following = cursor_after(shown[-1].pk) if len(page) > len(shown) else None
        return {"data": [listed.show(row) for row in shown], "next": following}


def cursor_after(pk: int) -> str:
    """The cursor of the page that begins after this row."""
    return base64.urlsafe_b64encode(f"after:{pk}".encode()).decode().rstrip("=")


def row_of(cursor: str) -> int:
    """The row that a cursor names."""
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
    except (ValueError, binascii.Error):
        text = ""
    kind, _colon, pk = text.partition(":")
    if kind != "after" or not pk.isdecimal() or len(pk) > 18:
        raise invalid("cursor", _("`cursor` must be the `next` value of a previous page."))
    return int(pk)
