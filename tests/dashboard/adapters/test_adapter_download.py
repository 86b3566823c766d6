"""The download of an adapter: whole, resumed, with missing files."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile

from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, User
from tests.dashboard.adapters.test_downloads import body


def address(adapter: Adapter) -> str:
    return reverse("adapter-download", args=[adapter.pk])


def test_a_viewer_gets_one_zip(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    response = client.get(address(adapter))
    content = body(response)
    assert response["Content-Disposition"] == 'attachment; filename="Triage-v1.zip"'
    assert response["X-Checksum-SHA256"] == hashlib.sha256(content).hexdigest()
    assert int(response["Content-Length"]) == len(content)
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None


def test_a_download_can_be_resumed(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    whole = client.get(address(adapter))
    content, etag = body(whole), whole["ETag"]
    rest = client.get(address(adapter), headers={"Range": "bytes=1000-", "If-Range": etag})
    assert (rest.status_code, content[:1000] + body(rest)) == (206, content)


def test_missing_files_are_reported(client: Client, vera: User, adapter: Adapter) -> None:
    shutil.rmtree(adapter.path())
    client.force_login(vera)
    response = client.get(address(adapter))
    assert response.status_code == 404
    assert "no longer on this machine" in response.content.decode()
