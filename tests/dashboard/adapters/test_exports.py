"""Exports: who starts, stops, downloads and deletes them, and what is refused."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import Adapter, BaseModel, Export, ExportRefused, Job, Project, Publication, State, User
from dashboard.models.adapters.export import export_forecast
from dashboard.models.operations import retention
from dashboard.presenters.queue_board import title_and_url
from tests.conftest import finish, make_export
from tests.dashboard.adapters.test_downloads import body
from tests.dashboard.conftest import api_client
from workers.contract.specs import EXPORT_FORMATS, ExportSpec, from_dict

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def export(adapter: Adapter, ed: User) -> Export:
    """A finished export."""
    return make_export(adapter, ed, CONTENT)


def start(client: Client, adapter: Adapter, format: str = "gguf-f16") -> int:
    return client.post(reverse("adapter-export", args=[adapter.pk]), {"format": format}).status_code


def test_an_editor_starts_each_format_once(client: Client, ed: User, adapter: Adapter) -> None:
    client.force_login(ed)
    for format in EXPORT_FORMATS:
        assert [start(client, adapter, format), start(client, adapter, format)] == [302, 302]
    jobs = Job.objects.filter(kind=Job.Kind.EXPORT)
    assert [job.queue for job in jobs] == [Job.Queue.CPU] * len(EXPORT_FORMATS)
    specs = [from_dict(ExportSpec, job.spec) for job in jobs]
    assert {spec.name for spec in specs} == {
        "Triage-v1-float32",
        "Triage-v1-bfloat16",
        "Triage-v1-f16",
        "Triage-v1-q8_0",
    }
    assert {spec.adapter for spec in specs} == {str(adapter.path())}
    assert title_and_url(jobs[0], jobs[0].exports.all())[1] == f"{adapter.get_absolute_url()}#exports"
    page = client.get(adapter.get_absolute_url()).content.decode()
    assert f'hx-get="{reverse("adapter-exports", args=[adapter.pk])}"' in page


def test_viewers_download_but_start_nothing(
    client: Client, vera: User, adapter: Adapter, export: Export
) -> None:
    client.force_login(vera)
    answer = client.get(reverse("export-download", args=[export.pk]))
    assert body(answer) == CONTENT
    assert answer["X-Checksum-SHA256"] == export.sha256
    assert answer["Content-Disposition"] == 'attachment; filename="Triage-v1-f16.gguf"'
    part = client.get(reverse("export-download", args=[export.pk]), headers={"Range": "bytes=10-19"})
    assert (part.status_code, body(part)) == (206, CONTENT[10:20])
    assert start(client, adapter, "float32") == 403
    assert client.post(reverse("export-delete", args=[export.pk])).status_code == 403
    page = client.get(reverse("adapter-exports", args=[adapter.pk])).content.decode()
    assert reverse("export-download", args=[export.pk]) in page
    assert reverse("adapter-export", args=[adapter.pk]) not in page
    assert "hx-get" not in page


def test_other_formats_are_refused(client: Client, ed: User, adapter: Adapter) -> None:
    client.force_login(ed)
    start(client, adapter, "../pickle")
    assert not Export.objects.exists()


def test_nothing_is_downloaded_before_the_end(client: Client, ed: User, adapter: Adapter) -> None:
    client.force_login(ed)
    start(client, adapter)
    assert client.get(reverse("export-download", args=[Export.objects.get().pk])).status_code == 404


def test_an_open_export_is_stopped_before_it_is_deleted(client: Client, ed: User, adapter: Adapter) -> None:
    client.force_login(ed)
    start(client, adapter)
    export = Export.objects.get()
    client.post(reverse("export-delete", args=[export.pk]))
    back = export.get_absolute_url()
    answer = client.post(reverse("queue-cancel", args=[export.job_id]), {"next": back})
    assert answer["Location"] == back
    assert Export.objects.get().job.state == State.CANCELLED
    start(client, adapter)
    assert Export.objects.get().job.state == State.QUEUED, "a stopped export makes room for the next"


def test_deleting_frees_the_disk(
    client: Client, ed: User, export: Export, django_capture_on_commit_callbacks: Any
) -> None:
    client.force_login(ed)
    with django_capture_on_commit_callbacks(execute=True):
        client.post(reverse("export-delete", args=[export.pk]))
    assert not Export.objects.exists()
    assert not export.path().parent.exists()
    assert client.get(reverse("export-download", args=[export.pk])).status_code == 404


def test_exports_end_after_their_days_with_their_files(
    export: Export, adapter: Adapter, ed: User, django_capture_on_commit_callbacks: Any
) -> None:
    kept = Export.objects.start(adapter, "float32", ed)
    list(retention.exports())
    assert Export.objects.count() == 2
    Job.objects.update(finished_at=timezone.now() - timedelta(days=settings.KEEP_EXPORTS_DAYS, hours=1))
    Job.objects.filter(pk=kept.job_id).update(finished_at=None)
    with django_capture_on_commit_callbacks(execute=True):
        list(retention.exports())
    assert list(Export.objects.all()) == [kept]
    assert not export.path().parent.exists()


def test_only_folders_without_an_export_are_orphans(export: Export) -> None:
    for folder in (export.folder, "ee" * 32):
        Publication.objects.begin(Publication.Kind.EXPORT, folder)
    Publication.objects.update(begun_at=timezone.now() - timedelta(days=2))
    assert [row.folder for row in Publication.objects.orphaned()] == ["ee" * 32]


def test_base_models_without_gguf_form_are_refused(
    client: Client, api: Client, ed: User, adapter: Adapter
) -> None:
    census = {**(adapter.base_model.census or {}), "model_type": "gpt2"}
    BaseModel.objects.filter(pk=adapter.base_model_id).update(census=census)
    client.force_login(ed)
    page = client.get(adapter.get_absolute_url()).content.decode()
    assert page.count('name="format"') == 2
    values = {"adapter": adapter.pk, "format": "gguf-q8_0"}
    answer = api.post("/api/v1/exports", values, content_type="application/json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_gguf")
    assert not Export.objects.exists()


def test_a_full_disk_is_noticed_before_the_job(
    ed: User, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(settings.DATA_DIR)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
    with pytest.raises(ExportRefused) as refusal:
        Export.objects.start(adapter, "float32", ed)
    assert refusal.value.code == "disk_full"
    assert not Job.objects.filter(kind=Job.Kind.EXPORT).exists()


def test_the_forecast_counts_the_layers_that_change(adapter: Adapter) -> None:
    base = adapter.base_model
    folder = Path(base.path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"dtype": "bfloat16"}')
    sizes = {format: export_forecast(adapter, format) for format in EXPORT_FORMATS}
    (folder / "config.json").unlink()
    assert base.parameters == 40_000
    text = len(b"{}\n")
    assert [one.file_bytes - text for one in sizes.values()] == [160_000, 80_000, 80_000, 42_500]
    merged = 80_000 + 2 * (2 * 32 * 32)
    assert sizes["gguf-f16"].memory_bytes == sizes["bfloat16"].memory_bytes
    assert sizes["float32"].memory_bytes - sizes["gguf-f16"].memory_bytes == 160_000 - merged


def test_the_api_starts_lists_and_deletes(api: Client, adapter: Adapter) -> None:
    values = {"adapter": adapter.pk, "format": "gguf-f16"}
    answer = api.post(
        "/api/v1/exports", values, content_type="application/json", headers={"Idempotency-Key": "one"}
    )
    assert answer.status_code == 202
    made = answer.json()
    assert (made["state"], made["bytes"], made["format"]) == ("queued", None, "gguf-f16")
    assert api.post("/api/v1/exports", values, content_type="application/json").json() == made
    address = f"/api/v1/exports/{made['id']}"
    assert api.get(f"{address}/download").json()["error"]["code"] == "not_finished"
    assert api.delete(address).json()["error"]["code"] == "still_running"
    finish(Job.objects.get(pk=made["job"]), State.FAILED)
    assert api.get(address).json()["error"]["code"] == "bad_data"
    listed = api.get("/api/v1/exports", {"adapter": adapter.pk}).json()["data"]
    assert [one["id"] for one in listed] == [made["id"]]
    assert api.get("/api/v1/exports", {"adapter": adapter.pk + 1}).json()["data"] == []
    assert api.delete(address).status_code == 204
    assert api.get(address).status_code == 404


def test_the_api_downloads_ranges(api: Client, export: Export) -> None:
    address = f"/api/v1/exports/{export.pk}/download"
    assert body(api.get(address)) == CONTENT
    assert (
        api.get(address, headers={"Range": "bytes=999999-"}).json()["error"]["code"]
        == "range_not_satisfiable"
    )
    shutil.rmtree(export.path().parent)
    assert api.get(address).json()["error"]["code"] == "files_missing"


def test_the_api_knows_no_adapters_of_others(otto: User, other_project: Project, adapter: Adapter) -> None:
    theirs = api_client(other_project, otto)
    for values, status in (
        ({"adapter": adapter.pk, "format": "float32"}, 404),
        ({"format": "float32"}, 422),
        ({"adapter": adapter.pk, "format": "pickle"}, 422),
        ({"adapter": adapter.pk, "format": "float32", "folder": "/etc"}, 422),
    ):
        answer = theirs.post("/api/v1/exports", values, content_type="application/json")
        assert answer.status_code == status
    assert not Export.objects.exists()


def test_a_repeated_request_whose_export_was_deleted_says_so(api: Client, adapter: Adapter) -> None:
    values, key = {"adapter": adapter.pk, "format": "float32"}, {"Idempotency-Key": "one"}
    api.post("/api/v1/exports", values, content_type="application/json", headers=key)
    export = Export.objects.select_related("job").get()
    finish(export.job)
    export.remove()
    answer = api.post("/api/v1/exports", values, content_type="application/json", headers=key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "deleted")
