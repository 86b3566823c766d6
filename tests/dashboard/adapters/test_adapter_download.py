"""Downloading an adapter: whole, in parts, resumed, and who may."""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import zipfile
from collections.abc import AsyncIterator

from django.http import HttpResponseBase, StreamingHttpResponse
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, TrainingRun, User


def address(adapter: Adapter) -> str:
    return reverse("adapter-download", args=[adapter.pk])


def body(response: HttpResponseBase) -> bytes:
    assert isinstance(response, StreamingHttpResponse)
    content = response.streaming_content

    async def collect() -> bytes:
        assert isinstance(content, AsyncIterator)
        return b"".join([piece async for piece in content])

    return asyncio.run(collect())


def test_a_viewer_gets_one_zip(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    response = client.get(address(adapter))
    content = body(response)
    assert response["Content-Disposition"] == 'attachment; filename="Triage-v1.zip"'
    assert response["X-Checksum-SHA256"] == hashlib.sha256(content).hexdigest()
    assert int(response["Content-Length"]) == len(content)
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None


def test_a_broken_download_can_be_resumed(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    whole = client.get(address(adapter))
    content, etag = body(whole), whole["ETag"]
    rest = client.get(address(adapter), headers={"Range": "bytes=1000-", "If-Range": etag})
    assert (rest.status_code, content[:1000] + body(rest)) == (206, content)


def test_several_ranges_at_once_are_refused(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    response = client.get(address(adapter), headers={"Range": "bytes=0-1,5-6"})
    assert (response.status_code, response["Content-Range"].split("/")[0]) == (416, "bytes *")


def test_nobody_keeps_a_copy_on_the_way(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    response = client.get(address(adapter))
    body(response)
    assert (response["Cache-Control"], response["X-Content-Type-Options"]) == ("private, no-store", "nosniff")


def test_it_says_so_when_the_files_are_gone(client: Client, vera: User, adapter: Adapter) -> None:
    shutil.rmtree(adapter.path())
    client.force_login(vera)
    response = client.get(address(adapter))
    assert response.status_code == 404
    assert "no longer on this machine" in response.content.decode()


def test_a_run_without_an_adapter_has_nothing_to_download(
    client: Client, vera: User, run: TrainingRun
) -> None:
    client.force_login(vera)
    assert client.get(reverse("adapter-download", args=[run.pk])).status_code == 404


def test_it_hides_the_adapter_from_an_outsider(client: Client, otto: User, adapter: Adapter) -> None:
    client.force_login(otto)
    assert client.get(address(adapter)).status_code == 404


def test_it_asks_to_sign_in(client: Client, adapter: Adapter) -> None:
    assert client.get(address(adapter)).headers["Location"].startswith("/sign-in/")
