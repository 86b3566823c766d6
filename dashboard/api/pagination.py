"""Lists as {"data": […], "next": cursor or null}, newest first. New rows do not shift the pages."""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from ninja import Field, Schema
from ninja.operation import Operation
from ninja.pagination import PaginationBase, paginate
from ninja.utils import contribute_operation_callback
from pydantic import TypeAdapter

from dashboard.api.refusals import invalid, refuse_others
from dashboard.models.accounts.project import parse_id


@dataclass(frozen=True)
class Rows:
    """The return value of list functions: rows, and the function that converts one for the response.

    Bytes that it returns are a row's JSON. `fetch` is called once with the rows of the page, for what they
    need besides. `keys` returns the primary keys of a page in another order, for its length and the last key
    before it.
    """

    rows: QuerySet[Any]
    convert: Callable[[Any], Any]
    fetch: Callable[[list[Any]], None] | None = None
    keys: Callable[[int, int | None], list[int]] | None = None

    def page(self, limit: int, after: int | None) -> list[Any]:
        """Return the rows after this one."""
        if self.keys:
            keys = self.keys(limit, after)
            found = self.rows.in_bulk(keys)
            return [found[key] for key in keys if key in found]
        rows = self.rows.order_by("-pk")
        return list((rows if after is None else rows.filter(pk__lt=after))[:limit])


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
        listed: Rows = queryset
        refuse_others(list(request.GET), [*type(pagination).model_fields, *params])
        after = None if pagination.cursor is None else decode_cursor(pagination.cursor)
        page = listed.page(pagination.limit + 1, after)
        visible = page[: pagination.limit]
        if listed.fetch:
            listed.fetch(visible)
        next_cursor = cursor_after(visible[-1].pk) if len(page) > len(visible) else None
        return {"data": [listed.convert(row) for row in visible], "next": next_cursor}


def listing(paginator: type[Newest]) -> Callable[[Callable[..., Rows]], Callable[..., HttpResponse]]:
    """Decorate a list function: its query parameters, and its page as JSON.

    Pydantic checks and writes each row at once: three times as fast as Ninja, which checks, copies and then
    writes the whole answer.
    """

    def decorate(view: Callable[..., Rows]) -> Callable[..., HttpResponse]:
        paged = paginate(paginator)(view)
        rows: list[TypeAdapter[Any]] = []

        @functools.wraps(paged)
        def answer(request: HttpRequest, **values: Any) -> HttpResponse:
            page = paged(request, **values)
            data = b", ".join(row if isinstance(row, bytes) else written(row) for row in page["data"])
            content = b'{"data": [%b], "next": %b}' % (data, json.dumps(page["next"]).encode())
            return HttpResponse(content, content_type="application/json; charset=utf-8")

        def written(row: Any) -> bytes:
            return rows[0].dump_json(rows[0].validate_python(row))

        def keep_row_type(operation: Operation) -> None:
            """Keep the type of a row, which is known once Ninja has built the operation."""
            page = operation.response_models[200].model_fields["response"].annotation
            (row,) = page.model_fields[paginator.items_attribute].annotation.__args__
            rows.append(TypeAdapter(row))

        contribute_operation_callback(answer, keep_row_type)
        return answer

    return decorate


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
