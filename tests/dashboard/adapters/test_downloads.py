"""Range requests for files: whole, in part, resumed, refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from django.http import HttpResponseBase, StreamingHttpResponse
from django.test import RequestFactory

from dashboard.downloads import SLICE_BYTES, FileSlice, ranged_file

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.zip"
    path.write_bytes(CONTENT)
    return path


def body(response: HttpResponseBase) -> bytes:
    assert isinstance(response, StreamingHttpResponse)
    content = response.streaming_content

    async def collect() -> bytes:
        assert isinstance(content, AsyncIterator)
        return b"".join([piece async for piece in content])

    return asyncio.run(collect())


OPENED: list[HttpResponseBase] = []


@pytest.fixture(autouse=True)
def closed_responses(db: None) -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def get(file: Path, name: str = "adapter.zip", **headers: str) -> HttpResponseBase:
    OPENED.append(ranged_file(RequestFactory().get("/", headers=headers), file, name))
    return OPENED[-1]


def test_it_honours_etags(file: Path) -> None:
    etag = get(file)["ETag"]
    assert get(file, **{"If-None-Match": f'"other", {etag}'}).status_code == 304
    assert body(get(file, **{"If-None-Match": '"other"'})) == CONTENT
    assert get(file, **{"If-Match": '"other"'}).status_code == 412
    assert body(get(file, **{"If-Match": etag})) == CONTENT


def test_it_sends_the_whole_file(file: Path) -> None:
    response = get(file)
    assert (response.status_code, body(response)) == (200, CONTENT)
    assert response["Content-Length"] == "1024"
    assert response["X-Checksum-SHA256"] == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=10-19", 10, 20), ("bytes=1000-", 1000, 1024), ("bytes=-24", 1000, 1024),
     ("bytes=-5000", 0, 1024), ("bytes=1000-99999", 1000, 1024)],
)  # fmt: skip
def test_it_sends_one_range(file: Path, asked: str, start: int, end: int) -> None:
    response = get(file, Range=asked)
    assert (response.status_code, body(response)) == (206, CONTENT[start:end])
    assert response["Content-Range"] == f"bytes {start}-{end - 1}/1024"
    assert response["Content-Length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=-0", "bytes=0-1,5-6", "bytes=9999999999-"])
def test_it_refuses_invalid_ranges(file: Path, asked: str) -> None:
    response = get(file, Range=asked)
    assert (response.status_code, response["Content-Range"]) == (416, "bytes */1024")


@pytest.mark.parametrize("asked", ["lines=1-2", "bytes=-", "bytes=5-2", "bytes=a-b", "bytes=٣-٤"])
def test_it_ignores_malformed_ranges(file: Path, asked: str) -> None:
    assert get(file, Range=asked).status_code == 200


def test_it_resumes_unchanged_content_only(file: Path) -> None:
    etag = get(file)["ETag"]
    assert get(file, Range="bytes=5-", **{"If-Range": etag}).status_code == 206
    file.write_bytes(CONTENT + b"more")
    assert get(file, Range="bytes=5-", **{"If-Range": etag}).status_code == 200


def test_it_answers_head_without_a_body(file: Path) -> None:
    response = ranged_file(RequestFactory().head("/"), file, "adapter.zip")
    assert (response.status_code, response["Content-Length"], response["Accept-Ranges"]) == (
        200,
        "1024",
        "bytes",
    )


def test_it_names_the_file_safely(file: Path) -> None:
    header = get(file, 'été"\r\nX: 1.zip')["Content-Disposition"]
    assert header.startswith("attachment;")
    assert "\r" not in header
    assert "filename*=utf-8''" in header


def test_it_is_neither_cached_nor_sniffed(file: Path) -> None:
    response = get(file)
    assert (response["Cache-Control"], response["X-Content-Type-Options"]) == ("private, no-store", "nosniff")


def test_it_reads_a_large_file_in_slices(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (2 * SLICE_BYTES + 1))

    async def sizes() -> list[int]:
        with path.open("rb") as file:
            return [len(piece) async for piece in FileSlice(file, 0, 2 * SLICE_BYTES + 1)]

    assert asyncio.run(sizes()) == [SLICE_BYTES, SLICE_BYTES, 1]
