"""Files sent to people and programs: in slices, resumable, never whole in memory.

The caller has already decided who may have the file. Knows nothing of rows or projects.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _

SLICE_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


# A spreadsheet takes a cell that begins like this for a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")


def csv_file(filename: str, rows: Iterable[Sequence[str | float | None]]) -> HttpResponse:
    """Rows as a CSV download (RFC 4180). Numbers stay numbers; no text can act as a formula."""
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return _kept_by_nobody(HttpResponse(text.getvalue(), content_type="text/csv; charset=utf-8"), filename)


def json_file(filename: str, values: dict[str, Any]) -> HttpResponse:
    """Values as a JSON download that people can read."""
    return _kept_by_nobody(JsonResponse(values, json_dumps_params={"indent": 1}), filename)


def _kept_by_nobody(response: HttpResponse, filename: str) -> HttpResponse:
    response["Content-Disposition"] = content_disposition_header(True, filename) or "attachment"
    response["Cache-Control"] = "private, no-store"
    return response


def _cell(value: str | float | None) -> str | float | None:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


class Unsatisfiable(Exception):
    """The asked range cannot be served."""


class FileSlice:
    """Part of an open file as an async stream: under ASGI a plain iterator would be read whole first."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self.file, self.start, self.length = file, start, length

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces of at most SLICE_BYTES, read outside the event loop."""
        read = sync_to_async(self._read, thread_sensitive=False)
        while piece := await read():
            yield piece

    def _read(self) -> bytes:
        self.file.seek(self.start)
        piece = self.file.read(min(SLICE_BYTES, self.length))
        self.start += len(piece)
        self.length -= len(piece)
        return piece

    def close(self) -> None:
        """Called by the response, also when the client hangs up before the first piece."""
        self.file.close()


def ranged_file(request: HttpRequest, path: Path, filename: str) -> HttpResponseBase:
    """The file as a download called `filename`, or the part of it that the Range header asks for.

    200 whole, 206 one range, 416 for several ranges or one outside the file; 304 and 412 as If-None-Match and
    If-Match say. A Range that cannot be read is ignored, and so is one whose If-Range names another content
    (RFC 9110, section 14.2).
    """
    # Opened before anything is measured: the name may be replaced, the open file stays.
    file = path.open("rb")
    digest, size = digest_of_file(file, path)
    etag = f'"{digest.hex()}"'
    known = get_conditional_response(request, etag=etag)
    if known is not None:
        file.close()
        return known
    try:
        wanted = _asked_range(request, etag, size)
    except Unsatisfiable:
        file.close()
        return _refusal(size)
    start, end = wanted or (0, size)
    response: HttpResponseBase
    if request.method == "HEAD":
        file.close()
        response = HttpResponse(content_type="application/zip")
    else:
        response = StreamingHttpResponse(FileSlice(file, start, end - start), content_type="application/zip")
    if wanted:
        response.status_code = 206
        response["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    response["Content-Length"] = str(end - start)
    response["Content-Disposition"] = content_disposition_header(True, filename) or "attachment"
    response["Accept-Ranges"] = "bytes"
    response["ETag"] = etag
    response["Repr-Digest"] = f"sha-256=:{base64.b64encode(digest).decode()}:"
    response["X-Checksum-SHA256"] = digest.hex()
    response["Cache-Control"] = "private, no-store"
    response["X-Content-Type-Options"] = "nosniff"
    return response


def digest_of_file(file: IO[bytes], path: Path) -> tuple[bytes, int]:
    """SHA-256 and size of the open file; hashed once per content, as a download may come in many ranges."""
    size, changed = file.seek(0, 2), path.stat().st_mtime_ns
    return _digest(path, size, changed), size


@functools.lru_cache(maxsize=256)
def _digest(path: Path, _size: int, _changed: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _asked_range(request: HttpRequest, etag: str, size: int) -> tuple[int, int] | None:
    """(start, end) of the one range asked for, end exclusive; None for the whole file."""
    header = request.headers.get("Range", "").replace(" ", "")
    if not header or request.headers.get("If-Range", etag) != etag:
        return None
    if header.startswith("bytes=") and "," in header:
        raise Unsatisfiable
    match = _RANGE.fullmatch(header)
    first, last = match.groups() if match else ("", "")
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise Unsatisfiable
    return start, end


def _refusal(size: int) -> HttpResponse:
    text = _("The requested range is not inside the file. Request one range inside it, or the whole file.")
    response = HttpResponse(text, status=416, content_type="text/plain; charset=utf-8")
    response["Content-Range"] = f"bytes */{size}"
    response["Cache-Control"] = "private, no-store"
    return response
