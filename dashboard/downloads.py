"""File downloads: streamed in slices and resumable. Callers check permissions first."""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import re
import tempfile
import zipfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import pydantic_core
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header
from django.utils.translation import gettext as _

ResponseT = TypeVar("ResponseT", bound=HttpResponseBase)
SLICE_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


# Spreadsheets interpret cells with these first characters as formulas (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")


def csv_file(filename: str, rows: Iterable[Sequence[str | float | None]], lines: str = "") -> HttpResponse:
    """Return rows as a CSV download, followed by `lines` that are CSV already."""
    text = csv_text(rows) + lines
    return _as_download(HttpResponse(text, content_type="text/csv; charset=utf-8"), filename)


def csv_text(rows: Iterable[Sequence[str | float | None]]) -> str:
    """Return rows as CSV (RFC 4180), with text escaped against formulas."""
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def json_file(filename: str, values: dict[str, Any]) -> HttpResponse:
    """Return values as an indented JSON download."""
    # Python's own encoder is slow with `indent`: ten times as slow as this one.
    content = pydantic_core.to_json(values, indent=1, fallback=str)
    return _as_download(HttpResponse(content, content_type="application/json"), filename)


def zip_of(filename: str, members: Mapping[str, Path]) -> StreamingHttpResponse:
    """Return files as one uncompressed zip download, under the names that are given."""
    # A file without a name: the response closes it, and the disk space is free again.
    file = tempfile.TemporaryFile()  # noqa: SIM115
    with zipfile.ZipFile(file, "w") as archive:
        for name, path in members.items():
            archive.write(path, name)
    size = file.tell()
    file.seek(0)
    response = StreamingHttpResponse(FileSlice(file, 0, size), content_type="application/zip")
    response["Content-Length"] = str(size)
    return _as_download(response, filename)


def _as_download(response: ResponseT, filename: str) -> ResponseT:
    response["Content-Disposition"] = content_disposition_header(True, filename) or "attachment"
    response["Cache-Control"] = "private, no-store"
    return response


def _cell(value: str | float | None) -> str | float | None:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


class Unsatisfiable(Exception):
    """The requested range cannot be served."""


class FileSlice:
    """Part of an open file as an async stream: under ASGI a plain iterator would be read whole first."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self.file, self.start, self.length = file, start, length

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield pieces of at most SLICE_BYTES, read outside the event loop."""
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
        """Close the file; the response calls this even when the client disconnects early."""
        self.file.close()


def ranged_file(request: HttpRequest, path: Path, filename: str) -> HttpResponseBase:
    """Return the file as a download named `filename`, or the range in the Range header.

    200 whole, 206 one range, 416 for several ranges or one outside the file; 304 and 412 as If-None-Match and
    If-Match say. A Range that cannot be read is ignored, and so is one whose If-Range names another content
    (RFC 9110, section 14.2).
    """
    # Opened first: the path may be replaced, but the open file stays the same.
    file = path.open("rb")
    digest, size = digest_of_file(file, path)
    etag = f'"{digest.hex()}"'
    known = get_conditional_response(request, etag=etag)
    if known is not None:
        file.close()
        return known
    try:
        wanted = _requested_range(request, etag, size)
    except Unsatisfiable:
        file.close()
        return _refusal(size)
    start, end = wanted or (0, size)
    response: HttpResponseBase
    kind = "application/zip" if path.suffix == ".zip" else "application/octet-stream"
    if request.method == "HEAD":
        file.close()
        response = HttpResponse(content_type=kind)
    else:
        response = StreamingHttpResponse(FileSlice(file, start, end - start), content_type=kind)
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
    """Return SHA-256 and size of the open file; cached, because a download may have many range requests."""
    size, changed = file.seek(0, 2), path.stat().st_mtime_ns
    return _digest(path, size, changed), size


@functools.lru_cache(maxsize=256)
def _digest(path: Path, _size: int, _changed: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _requested_range(request: HttpRequest, etag: str, size: int) -> tuple[int, int] | None:
    """Return (start, end) of the requested range, end exclusive; None for the whole file."""
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
