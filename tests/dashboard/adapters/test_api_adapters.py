"""Adapters over the API: list, look, approve, download."""

from __future__ import annotations

import asyncio
import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from dashboard.models import Adapter, ApiToken, Project, TrainingRun, User

ADAPTERS = "/api/v1/adapters"


@pytest.fixture
def api(token: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {token}"})


@pytest.fixture
def adapter(run: TrainingRun) -> Adapter:
    """A published adapter with files."""
    folder = Path(settings.DATA_DIR) / "adapters" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    files = dict.fromkeys(("adapter_config.json", "adapter_model.safetensors"), "ef" * 32)
    return Adapter.objects.publish(run, "api", files, 2)


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
        "bytes": 2,
        "sha256": "ef" * 32,
    }
    assert api.get(ADAPTERS).json() == {"data": [answer], "next": None}


def test_it_hides_a_foreign_adapter(adapter: Adapter, other_project: Project, otto: User) -> None:
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(other_project, otto, 'x')[1]}"})
    assert api.get(ADAPTERS).json()["data"] == []
    assert api.get(f"{ADAPTERS}/{adapter.pk}").status_code == 404
    assert api.get(f"{ADAPTERS}/{adapter.pk}/download").status_code == 404
    assert stage(api, adapter, {}).status_code == 404


def test_a_manager_approves_it(adapter: Adapter, project: Project, mara: User) -> None:
    api = Client(headers={"Authorization": f"Bearer {ApiToken.issue(project, mara, 'x')[1]}"})
    assert stage(api, adapter, {"stage": "approved"}).json()["stage"] == "approved"
    for body in ({}, {"stage": "best"}, {"stage": None}, {"stage": 1}):
        assert stage(api, adapter, body).json()["error"]["field"] == "stage"


def test_an_editor_approves_nothing(api: Client, adapter: Adapter) -> None:
    assert stage(api, adapter, {"stage": "approved"}).status_code == 403


def test_it_downloads_the_zip_whole_and_in_part(api: Client, adapter: Adapter) -> None:
    whole = read(api.get(f"{ADAPTERS}/{adapter.pk}/download"), 200)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    assert {"adapter_config.json", "adapter_model.safetensors", "eval.json", "SHA256SUMS"} <= names
    part = api.get(f"{ADAPTERS}/{adapter.pk}/download", headers={"Range": "bytes=4-9"})
    assert read(part, 206) == whole[4:10]


def test_it_answers_head_without_the_file(api: Client, adapter: Adapter) -> None:
    answer = api.head(f"{ADAPTERS}/{adapter.pk}/download")
    assert answer.status_code == 200
    assert int(answer.headers["Content-Length"]) > 100
    assert "Triage-v1.zip" in answer.headers["Content-Disposition"]


def read(answer: Any, status: int) -> bytes:
    assert answer.status_code == status

    async def collect() -> bytes:
        return b"".join([piece async for piece in answer.streaming_content])

    return asyncio.run(collect())


def test_it_says_that_the_files_are_gone(api: Client, adapter: Adapter) -> None:
    shutil.rmtree(adapter.path())
    shutil.rmtree(Path(settings.DATA_DIR) / "archives", ignore_errors=True)
    answer = api.get(f"{ADAPTERS}/{adapter.pk}/download")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "files_missing"


def test_it_refuses_a_range_outside_the_file_in_the_api_s_own_shape(api: Client, adapter: Adapter) -> None:
    answer = api.get(f"{ADAPTERS}/{adapter.pk}/download", headers={"Range": "bytes=99999999-"})
    assert answer.status_code == 416
    assert answer.json()["error"]["code"] == "range_not_satisfiable"
    assert answer["Content-Range"].startswith("bytes */")
