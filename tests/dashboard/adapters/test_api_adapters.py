"""List, details, stage and download of adapters in the API."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.test import Client

from dashboard.models import Adapter, Project, User
from tests.dashboard.adapters.test_downloads import body
from tests.dashboard.conftest import api_client

ADAPTERS = "/api/v1/adapters"


def stage(api: Client, adapter: Adapter, body: Any) -> Any:
    return api.post(f"{ADAPTERS}/{adapter.pk}/stage", body, content_type="application/json")


def test_it_shows_an_adapter_and_lists_it(api: Client, adapter: Adapter) -> None:
    answer = api.get(f"{ADAPTERS}/{adapter.pk}").json()
    assert answer == {
        "id": adapter.pk,
        "name": "Triage",
        "version": 1,
        "stage": "draft",
        "run": adapter.run_id,
        "base_model": adapter.base_model_id,
        "bytes": 4096,
        "sha256": adapter.sha256,
        "tags": [],
    }
    assert api.get(ADAPTERS).json() == {"data": [answer], "next": None}


def test_a_manager_approves_it(adapter: Adapter, project: Project, mara: User) -> None:
    api = api_client(project, mara)
    assert stage(api, adapter, {"stage": "approved"}).json()["stage"] == "approved"
    for invalid in ({}, {"stage": "best"}, {"stage": None}, {"stage": 1}):
        assert stage(api, adapter, invalid).json()["error"]["field"] == "stage"


def test_it_downloads_the_zip_whole_and_in_part(api: Client, adapter: Adapter) -> None:
    whole = body(api.get(f"{ADAPTERS}/{adapter.pk}/download"))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    assert {"adapter_config.json", "adapter_model.safetensors", "eval.json", "SHA256SUMS"} <= names
    part = api.get(f"{ADAPTERS}/{adapter.pk}/download", headers={"Range": "bytes=4-9"})
    assert (part.status_code, body(part)) == (206, whole[4:10])


def test_the_list_hides_other_projects(adapter: Adapter, other_project: Project, otto: User) -> None:
    api = api_client(other_project, otto)
    assert api.get(ADAPTERS).json()["data"] == []


def test_head_has_the_size_of_the_zip(api: Client, adapter: Adapter) -> None:
    answer = api.head(f"{ADAPTERS}/{adapter.pk}/download")
    assert (answer.status_code, int(answer.headers["Content-Length"]) > 4096) == (200, True)


def test_missing_files_are_an_error(api: Client, adapter: Adapter) -> None:
    shutil.rmtree(adapter.path())
    shutil.rmtree(Path(settings.DATA_DIR) / "archives", ignore_errors=True)
    answer = api.get(f"{ADAPTERS}/{adapter.pk}/download")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "files_missing"


def test_an_invalid_range_has_the_api_s_error(api: Client, adapter: Adapter) -> None:
    answer = api.get(f"{ADAPTERS}/{adapter.pk}/download", headers={"Range": "bytes=99999999-"})
    assert answer.status_code == 416
    assert answer.json()["error"]["code"] == "range_not_satisfiable"
    assert answer["Content-Range"].startswith("bytes */")
