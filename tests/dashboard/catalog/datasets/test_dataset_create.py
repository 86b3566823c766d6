"""Uploading a dataset on its page."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from dashboard.models import Dataset, DatasetVersion, Job, Outbox, User
from dashboard.views.catalog import datasets
from tests.conftest import make_dataset

ROWS = b'{"prompt": "hello", "completion": "hi"}\n' * 5


def send(client: Client, content: bytes = ROWS, filename: str = "my_tickets.jsonl", **fields: str) -> object:
    return client.post(reverse("dataset-create"), {"file": SimpleUploadedFile(filename, content), **fields})


def test_an_upload_queues_its_import(client: Client, ed: User) -> None:
    client.force_login(ed)
    response = send(client, name="Tickets")
    version = DatasetVersion.objects.get()
    assert response.url == version.get_absolute_url()  # type: ignore[attr-defined]
    assert (version.dataset.name, version.version, version.state) == ("Tickets", 1, "queued")
    assert Outbox.objects.filter(job=version.job).exists()


def test_the_file_gets_a_random_name(client: Client, ed: User, settings: Settings) -> None:
    client.force_login(ed)
    send(client, filename="../../evil.jsonl")
    version = DatasetVersion.objects.get()
    kept = Path(settings.UPLOAD_DIR) / version.upload
    assert kept.read_bytes() == ROWS
    assert "evil" not in version.upload
    assert version.filename == "evil.jsonl"


def test_the_name_defaults_to_the_file_name(client: Client, ed: User) -> None:
    client.force_login(ed)
    send(client, filename="my_tickets.JSONL.gz")
    assert Dataset.objects.get().name == "my tickets"


def test_columns_and_options_reach_the_spec(client: Client, ed: User) -> None:
    client.force_login(ed)
    columns = {"prompt_column": "question", "completion_column": "reply", "group_column": "customer"}
    send(client, skip_bad_rows="on", **columns)
    spec = Job.objects.get().spec
    assert {name: spec[name] for name in columns} == columns
    assert spec["skip_bad_rows"] is True


def test_name_and_group_column_come_from_the_address(client: Client, ed: User) -> None:
    client.force_login(ed)
    page = client.get(reverse("dataset-create"), {"name": "T", "group_column": "customer"}).content.decode()
    assert 'value="T"' in page
    assert 'value="customer"' in page


@pytest.mark.parametrize(
    ("filename", "content", "words"),
    [
        ("tickets.jsonl", b"", "is empty"),
        ("tickets.zip", b"PK", "cannot be imported"),
        ("tickets.tar.gz", ROWS, "cannot be imported"),
    ],
)
def test_unreadable_files_are_refused(
    client: Client, ed: User, filename: str, content: bytes, words: str
) -> None:
    client.force_login(ed)
    response = send(client, content, filename, name="Kept name")
    assert response.status_code == 422  # type: ignore[attr-defined]
    assert words in response.content.decode()  # type: ignore[attr-defined]
    assert "Kept name" in response.content.decode()  # type: ignore[attr-defined]
    assert not Dataset.objects.exists()


def test_a_file_above_the_limit_is_refused(client: Client, ed: User, settings: Settings) -> None:
    settings.UPLOAD_LIMIT_BYTES = 100
    client.force_login(ed)
    response = send(client)
    assert response.status_code == 422  # type: ignore[attr-defined]
    assert not Dataset.objects.exists()


@pytest.mark.parametrize(
    "fields", [{"prompt_column": "a"}, {"completion_column": "a", "group_column": "a"}, {"name": "x" * 121}]
)
def test_invalid_columns_are_refused(client: Client, ed: User, fields: dict[str, str]) -> None:
    client.force_login(ed)
    assert send(client, ROWS, **fields).status_code == 422  # type: ignore[arg-type, attr-defined]


def test_the_name_of_another_project_is_free(
    client: Client, ed: User, otto: User, other_project: object
) -> None:
    theirs = make_dataset(other_project, "Secret", by=otto)  # type: ignore[arg-type]
    client.force_login(ed)
    send(client, name="Secret")
    assert theirs.versions.count() == 1
    assert Dataset.objects.get(project=ed.projects().get()).name == "Secret"


def test_a_repeated_form_leads_to_its_first_upload(client: Client, ed: User, settings: Settings) -> None:
    client.force_login(ed)
    key = str(uuid.uuid4())
    first = send(client, name="Tickets", idempotency_key=key)
    kept = set(Path(settings.UPLOAD_DIR).iterdir())
    again = send(client, name="Tickets", idempotency_key=key)
    assert again.url == first.url  # type: ignore[attr-defined]
    assert DatasetVersion.objects.count() == Job.objects.filter(kind="import").count() == 1
    assert set(Path(settings.UPLOAD_DIR).iterdir()) == kept


def test_a_double_click_uploads_once(
    client: Client, ed: User, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.force_login(ed)
    key = str(uuid.uuid4())
    first = send(client, idempotency_key=key)
    kept = set(Path(settings.UPLOAD_DIR).iterdir())
    look = datasets.uploaded_with
    answers = iter([lambda *_asked: None, look])
    monkeypatch.setattr(datasets, "uploaded_with", lambda *asked: next(answers)(*asked))
    assert send(client, idempotency_key=key).url == first.url  # type: ignore[attr-defined]
    assert DatasetVersion.objects.count() == 1
    assert set(Path(settings.UPLOAD_DIR).iterdir()) == kept


def test_another_file_or_name_under_one_key_is_another_upload(client: Client, ed: User) -> None:
    client.force_login(ed)
    key = str(uuid.uuid4())
    send(client, name="Tickets", idempotency_key=key)
    send(client, ROWS * 2, name="Tickets", idempotency_key=key)
    # The same size with another content.
    send(client, ROWS[::-1], name="Tickets", idempotency_key=key)
    send(client, name="Letters", idempotency_key=key)
    assert DatasetVersion.objects.count() == 4
