"""Lists as {"data": […], "next": cursor or null}, newest first. New rows do not shift the pages."""

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
from dashboard.models.accounts.project import parse_id


@dataclass(frozen=True)
class Rows:
    """The return value of list functions: rows, and the function that converts one for the response.

    `fetch` is called once with the rows of the page, for what they need besides.
    """

    rows: QuerySet[Any]
    convert: Callable[[Any], Any]
    fetch: Callable[[list[Any]], None] | None = None


class Newest(PaginationBase):
    """Pages of rows, the newest first."""

    class Input(Schema):
        """The query parameters."""

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
        """Return the rows after the cursor, and the cursor of the next page."""
        refuse_others(list(request.GET), ["limit", "cursor", *params])
        listed: Rows = queryset
        rows = listed.rows.order_by("-pk")
        if pagination.cursor is not None:
            rows = rows.filter(pk__lt=decode_cursor(pagination.cursor))
        page = list(rows[: pagination.limit + 1])
        visible = page[: pagination.limit]
        if listed.fetch:
            listed.fetch(visible)
        next_cursor = cursor_after(visible[-1].pk) if len(page) > len(visible) else None
        return {"data": [listed.convert(row) for row in visible], "next": next_cursor}


def cursor_after(pk: int) -> str:
    """Return the cursor of the page after this row."""
    return base64.urlsafe_b64encode(f"after:{pk}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> int:
    """Return the primary key in a cursor."""
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
    except (ValueError, binascii.Error):
        text = ""
    kind, _colon, number = text.partition(":")
    pk = parse_id(number)
    if kind != "after" or pk is None:
        raise invalid("cursor", _("`cursor` must be the `next` value of a previous page."))
    return pk
