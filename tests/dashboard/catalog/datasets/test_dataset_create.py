"""Uploading a dataset: what is taken in, what is refused at once, and who may not."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from dashboard.models import Dataset, DatasetVersion, Job, Outbox, State, User
from dashboard.views.catalog import datasets
from tests.conftest import finish, make_dataset

ROWS = b'{"prompt": "hello", "completion": "hi"}\n' * 5


def send(client: Client, content: bytes = ROWS, filename: str = "my_tickets.jsonl", **fields: str) -> object:
    return client.post(reverse("dataset-create"), {"file": SimpleUploadedFile(filename, content), **fields})


def test_it_queues_the_import_of_an_upload(client: Client, ed: User) -> None:
    client.force_login(ed)
    response = send(client, name="Tickets")
    version = DatasetVersion.objects.get()
    assert response.url == version.get_absolute_url()  # type: ignore[attr-defined]
    assert (version.dataset.name, version.version, version.state) == ("Tickets", 1, "queued")
    assert Outbox.objects.filter(job=version.job).exists()


def test_it_keeps_the_file_under_a_name_nobody_chose(client: Client, ed: User, settings: Settings) -> None:
    client.force_login(ed)
    send(client, filename="../../evil.jsonl")
    version = DatasetVersion.objects.get()
    kept = Path(settings.UPLOAD_DIR) / version.upload
    assert kept.read_bytes() == ROWS
    assert "evil" not in version.upload
    assert version.filename == "evil.jsonl"


def test_it_takes_the_name_from_the_file(client: Client, ed: User) -> None:
    client.force_login(ed)
    send(client, filename="my_tickets.JSONL.gz")
    assert Dataset.objects.get().name == "my tickets"


def test_the_same_name_makes_the_next_version(client: Client, ed: User, dataset: Dataset) -> None:
    client.force_login(ed)
    send(client, name=f"  {dataset.name} ")
    assert list(dataset.versions.values_list("version", flat=True)) == [2, 1]


def test_it_passes_columns_and_the_wish_for_good_rows_on(client: Client, ed: User) -> None:
    client.force_login(ed)
    send(client, prompt_column="question", completion_column="reply", skip_bad_rows="on")
    spec = Job.objects.get().spec
    assert (spec["prompt_column"], spec["completion_column"], spec["skip_bad_rows"]) == (
        "question",
        "reply",
        True,
    )


def test_it_passes_on_what_rows_share(client: Client, ed: User) -> None:
    client.force_login(ed)
    send(client, group_column="customer")
    assert Job.objects.get().spec["group_column"] == "customer"
    assert DatasetVersion.objects.get().group_column == "customer"


def test_it_offers_the_column_that_a_dataset_suggested(client: Client, ed: User) -> None:
    client.force_login(ed)
    page = client.get(reverse("dataset-create"), {"name": "T", "group_column": "customer"}).content.decode()
    assert 'value="customer"' in page


@pytest.mark.parametrize("column", ["q", "a"])
def test_it_refuses_to_keep_rows_together_by_what_is_learned(client: Client, ed: User, column: str) -> None:
    client.force_login(ed)
    response = send(client, prompt_column="q", completion_column="a", group_column=column)
    assert response.status_code == 422  # type: ignore[attr-defined]
    assert "cannot be the group column" in response.content.decode()  # type: ignore[attr-defined]
    assert not Dataset.objects.exists()


@pytest.mark.parametrize(
    ("filename", "content", "words"),
    [
        ("tickets.jsonl", b"", "is empty"),
        ("tickets.zip", b"PK", "cannot be imported"),
        ("tickets.xlsx", b"PK", "cannot be imported"),
        ("tickets", ROWS, "cannot be imported"),
        ("tickets.tar.gz", ROWS, "cannot be imported"),
    ],
)
def test_it_refuses_what_no_import_could_read(
    client: Client, ed: User, filename: str, content: bytes, words: str
) -> None:
    client.force_login(ed)
    response = send(client, content, filename, name="Kept name")
    assert response.status_code == 422  # type: ignore[attr-defined]
    assert words in response.content.decode()  # type: ignore[attr-defined]
    assert "Kept name" in response.content.decode()  # type: ignore[attr-defined]
    assert not Dataset.objects.exists()


def test_it_refuses_a_file_over_the_limit(client: Client, ed: User, settings: Settings) -> None:
    settings.UPLOAD_LIMIT_BYTES = 100
    client.force_login(ed)
    response = send(client)
    assert "larger than the limit" in response.content.decode()  # type: ignore[attr-defined]
    assert not Dataset.objects.exists()


def test_it_asks_for_a_file(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert client.post(reverse("dataset-create"), {"name": "Nothing"}).status_code == 422


@pytest.mark.parametrize("fields", [{"prompt_column": "a"}, {"prompt_column": "a", "completion_column": "a"}])
def test_it_refuses_a_mapping_that_means_nothing(client: Client, ed: User, fields: dict[str, str]) -> None:
    client.force_login(ed)
    assert send(client, ROWS, **fields).status_code == 422  # type: ignore[arg-type, attr-defined]


@pytest.mark.parametrize("name", ["x" * 121, "a\x00b"])
def test_it_refuses_a_name_that_cannot_be_kept(client: Client, ed: User, name: str) -> None:
    client.force_login(ed)
    assert send(client, name=name).status_code == 422  # type: ignore[attr-defined]


def test_it_leaves_no_file_behind_when_it_refuses(client: Client, ed: User, settings: Settings) -> None:
    client.force_login(ed)
    before = set(Path(settings.UPLOAD_DIR).iterdir())
    send(client, filename="tickets.zip")
    assert set(Path(settings.UPLOAD_DIR).iterdir()) == before


def test_it_offers_the_name_of_the_dataset_one_comes_from(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert 'value="Tickets"' in client.get(reverse("dataset-create"), {"name": "Tickets"}).content.decode()


def test_it_refuses_a_viewer(client: Client, vera: User) -> None:
    client.force_login(vera)
    assert client.get(reverse("dataset-create")).status_code == 403
    assert send(client).status_code == 403  # type: ignore[attr-defined]
    assert not Dataset.objects.exists()


def test_another_projects_name_is_not_taken(
    client: Client, ed: User, otto: User, other_project: object
) -> None:
    theirs = make_dataset(other_project, "Secret", by=otto)  # type: ignore[arg-type]
    client.force_login(ed)
    send(client, name="Secret")
    assert theirs.versions.count() == 1
    assert Dataset.objects.get(project=ed.projects().get()).name == "Secret"


def test_a_form_that_is_sent_again_leads_to_its_first_upload(
    client: Client, ed: User, settings: Settings
) -> None:
    client.force_login(ed)
    key = str(uuid.uuid4())
    first = send(client, name="Tickets", idempotency_key=key)
    kept = set(Path(settings.UPLOAD_DIR).iterdir())
    again = send(client, name="Tickets", idempotency_key=key)
    assert again.url == first.url  # type: ignore[attr-defined]
    assert DatasetVersion.objects.count() == Job.objects.filter(kind="import").count() == 1
    assert set(Path(settings.UPLOAD_DIR).iterdir()) == kept


def test_an_upload_that_was_imported_again_since_is_still_found(client: Client, ed: User) -> None:
    client.force_login(ed)
    key = str(uuid.uuid4())
    first = send(client, idempotency_key=key)
    version = DatasetVersion.objects.get()
    assert version.job
    finish(version.job, State.FAILED)
    version.refresh_from_db()
    version.import_again(ed)
    assert send(client, idempotency_key=key).url == first.url  # type: ignore[attr-defined]
    assert DatasetVersion.objects.count() == 1


def test_the_slower_half_of_a_double_click_keeps_nothing(
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


def test_another_file_or_name_under_the_same_key_is_another_upload(client: Client, ed: User) -> None:
    client.force_login(ed)
    key = str(uuid.uuid4())
    send(client, name="Tickets", idempotency_key=key)
    send(client, ROWS * 2, name="Tickets", idempotency_key=key)
    # As long as the first one, and not the same.
    send(client, ROWS[::-1], name="Tickets", idempotency_key=key)
    send(client, name="Letters", idempotency_key=key)
    assert DatasetVersion.objects.count() == 4


def test_each_form_has_a_key_of_its_own(client: Client, ed: User) -> None:
    client.force_login(ed)
    forms = [client.get(reverse("dataset-create")).content.decode() for _form in range(2)]
    keys = {form.split('name="idempotency_key" value="')[1].split('"')[0] for form in forms}
    assert len(keys) == 2
