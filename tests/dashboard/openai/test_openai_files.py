"""Files of the OpenAI-compatible API: uploads of rows and results of runs."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import openai
import pytest
from django.utils import timezone
from openai import OpenAI
from pytest_django import Settings

from dashboard.models import (
    Adapter,
    ApiToken,
    Dataset,
    DatasetVersion,
    Job,
    MetricSeries,
    Project,
    Role,
    State,
    TrainingRun,
    User,
)
from tests.conftest import finish, make_dataset, make_user
from tests.openai_client import AsgiTransport, Connect, client_of

ROWS = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n' * 20
FILE = ("rows.jsonl", ROWS)


def test_upload_becomes_a_dataset(client: OpenAI, project: Project) -> None:
    file = client.files.create(file=FILE, purpose="fine-tune")
    version = DatasetVersion.objects.get(project=project)
    assert file.to_dict() == {
        "id": f"file-{version.pk}",
        "object": "file",
        "bytes": len(ROWS),
        "created_at": int(version.created_at.timestamp()),
        "expires_at": None,
        "filename": "rows.jsonl",
        "purpose": "fine-tune",
        "status": "uploaded",
        "status_details": None,
    }
    assert version.dataset.name == "rows"
    assert version.job
    assert (version.job.kind, version.job.state) == ("import", "queued")


def test_second_upload_of_a_name_is_the_next_version(client: OpenAI, project: Project) -> None:
    ids = [client.files.create(file=FILE, purpose="fine-tune").id for _upload in range(2)]
    assert len(set(ids)) == 2
    assert [version.version for version in Dataset.objects.get().versions.order_by("pk")] == [1, 2]


@pytest.mark.parametrize(
    ("file", "purpose", "param"),
    [
        (FILE, "batch", "purpose"),
        (("rows.exe", ROWS), "fine-tune", "file"),
        (("rows.jsonl", b""), "fine-tune", "file"),
        (("a\x00/../../b", ROWS), "fine-tune", "file"),
    ],
)
def test_wrong_upload_is_refused(client: OpenAI, file: tuple[str, bytes], purpose: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=file, purpose=purpose)  # type: ignore[arg-type]
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert not DatasetVersion.objects.exists()


@pytest.mark.parametrize("length", [3600, 2_592_000])
def test_file_expires_after_its_creation(client: OpenAI, length: int) -> None:
    expiry: Any = {"anchor": "created_at", "seconds": length}
    file = client.files.create(file=FILE, purpose="fine-tune", expires_after=expiry)
    assert file.expires_at == file.created_at + length
    assert [listed.expires_at for listed in client.files.list()] == [file.expires_at]


@pytest.mark.parametrize(
    ("expiry", "param"),
    [
        ({"anchor": "last_used_at", "seconds": 3600}, "expires_after[anchor]"),
        ({"seconds": 3600}, "expires_after[anchor]"),
        ({"anchor": "created_at"}, "expires_after[seconds]"),
        ({"anchor": "created_at", "seconds": 3599}, "expires_after[seconds]"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "expires_after[seconds]"),
        ({"anchor": "created_at", "seconds": -3600}, "expires_after[seconds]"),
        ({"anchor": "created_at", "seconds": "3600.5"}, "expires_after[seconds]"),
        ({"anchor": "created_at", "seconds": "9" * 5000}, "expires_after[seconds]"),
        ({"anchor": "created_at", "seconds": 3600, "hours": 1}, "expires_after[hours]"),
        ("3600", "expires_after"),
    ],
)
def test_wrong_expiry_is_refused(client: OpenAI, expiry: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=FILE, purpose="fine-tune", expires_after=expiry)
    assert refused.value.param == param
    assert not DatasetVersion.objects.exists()


def test_used_file_does_not_expire(client: OpenAI, run: TrainingRun) -> None:
    DatasetVersion.objects.update(expires_at=timezone.now())
    file = f"file-{run.dataset_version_id}"
    assert client.files.retrieve(file).expires_at is None
    run.delete()
    assert client.files.retrieve(file).expires_at


def test_status_follows_the_import(client: OpenAI, project: Project) -> None:
    ready = make_dataset(project, "Ready").newest_ready()
    failed = make_dataset(project, "Failed", ready=False).newest()
    assert ready
    assert failed
    assert failed.job
    finish(failed.job, State.FAILED, error_message="Row 2 has no answer.", error_code="bad_data")
    assert client.files.wait_for_processing(f"file-{ready.pk}").status == "processed"
    broken = client.files.wait_for_processing(f"file-{failed.pk}")
    assert (broken.status, broken.status_details) == ("error", "Row 2 has no answer.")


def test_list_pages_by_the_last_id(client: OpenAI, project: Project) -> None:
    pks = [make_dataset(project, f"Rows {number}").versions.get().pk for number in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == [f"file-{pk}" for pk in reversed(pks)]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == [f"file-{pk}" for pk in pks]
    page = client.files.list(limit=2)
    assert (len(page.data), page.has_more) == (2, True)


@pytest.mark.parametrize("after", ["file-x", "ftjob-1", f"file-{10**30}"])
def test_wrong_cursor_is_refused(client: OpenAI, after: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.list(after=after)
    assert refused.value.param == "after"


def test_upload_can_be_read_until_its_rows_are_imported(client: OpenAI) -> None:
    file = client.files.create(file=FILE, purpose="fine-tune")
    assert client.files.content(file.id).read() == ROWS
    DatasetVersion.objects.get().delete_upload()
    with pytest.raises(openai.NotFoundError) as refused:
        client.files.content(file.id)
    assert refused.value.code == "content_deleted"


def test_unused_upload_is_deleted(client: OpenAI, project: Project, settings: Settings) -> None:
    version = make_dataset(project).versions.get()
    upload = Path(settings.UPLOAD_DIR) / version.upload
    assert upload.exists()
    assert client.files.delete(f"file-{version.pk}").deleted
    assert not Dataset.objects.exists()
    assert not upload.exists()
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(f"file-{version.pk}")


def test_used_or_waiting_upload_is_kept(
    client: OpenAI, run: TrainingRun, project: Project, transport: AsgiTransport
) -> None:
    waiting = make_dataset(project, "Waiting", ready=False).versions.get()
    for pk in (run.dataset_version_id, waiting.pk):
        with pytest.raises(openai.ConflictError) as refused:
            client.with_options(max_retries=2).files.delete(f"file-{pk}")
        assert refused.value.code == "in_use"
    assert len(transport.requests) == 2, "a conflict is not tried again"
    assert DatasetVersion.objects.count() == 2


def test_results_are_metrics_and_adapter(client: OpenAI, adapter: Adapter) -> None:
    metrics, archive = client.files.list(purpose="fine-tune-results")
    assert metrics.purpose == archive.purpose == "fine-tune-results"
    table = list(csv.reader(io.StringIO(client.files.content(metrics.id).text)))
    assert table[0] == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert table[5] == ["5", "0.6000000238418579", "", "1.25", ""]
    MetricSeries.objects.append(adapter.run, "train/token_accuracy", [(5, 0.25)])
    MetricSeries.objects.append(adapter.run, "validation/token_accuracy", [(5, 0.5)])
    table = list(csv.reader(io.StringIO(client.files.content(metrics.id).text)))
    assert table[5] == ["5", "0.6000000238418579", "0.25", "1.25", "0.5"]
    with zipfile.ZipFile(io.BytesIO(client.files.content(archive.id).read())) as folder:
        assert any(name.endswith("adapter_model.safetensors") for name in folder.namelist())
    assert client.files.retrieve(metrics.id).filename == "step_metrics.csv"
    with pytest.raises(openai.ConflictError):
        client.files.delete(archive.id)
    for order in ("asc", "desc"):
        pages = client.files.list(purpose="fine-tune-results", limit=1, order=order)  # type: ignore[arg-type]
        assert [file.id for file in pages] == [metrics.id, archive.id]


def test_others_see_no_file(connect: Connect, adapter: Adapter, otto: User, other_project: Project) -> None:
    stranger = client_of(connect, other_project, otto)
    assert list(stranger.files.list()) == list(stranger.files.list(purpose="fine-tune-results")) == []
    run = adapter.run
    for file in (f"file-{run.dataset_version_id}", f"file-metrics-{run.pk}", f"file-adapter-{run.pk}"):
        for act in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
            with pytest.raises(openai.NotFoundError):
                act(file)


@pytest.mark.parametrize("who", ["viewer", "read token"])
def test_readers_neither_upload_nor_delete(
    connect: Connect, project: Project, dataset: Dataset, who: str
) -> None:
    reader = make_user("reader@example.org", project, Role.VIEWER if who == "viewer" else Role.EDITOR)
    scope = ApiToken.Scope.WRITE if who == "viewer" else ApiToken.Scope.READ
    client = client_of(connect, project, reader, scope=scope)
    version = dataset.versions.get()
    assert client.files.retrieve(f"file-{version.pk}").filename
    with pytest.raises(openai.PermissionDeniedError):
        client.files.create(file=FILE, purpose="fine-tune")
    with pytest.raises(openai.PermissionDeniedError):
        client.files.delete(f"file-{version.pk}")


def test_repeated_upload_makes_one_file(
    connect: Connect, token: str, transport: AsgiTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenAI, "_sleep_for_retry", lambda *_args, **_options: None)
    transport.lost = 2
    file = connect(token, max_retries=2).files.create(file=FILE, purpose="fine-tune")
    assert [request.headers["x-stainless-retry-count"] for request in transport.requests] == ["0", "1", "2"]
    assert [f"file-{version.pk}" for version in DatasetVersion.objects.all()] == [file.id]
    assert Job.objects.count() == 1
