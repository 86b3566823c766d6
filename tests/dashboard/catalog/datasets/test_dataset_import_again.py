"""Importing a failed upload again, with chosen columns or without its invalid rows."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Dataset, DatasetVersion, Project, State, User
from tests.conftest import finish, make_dataset


@pytest.fixture
def unclear(project: Project, ed: User) -> DatasetVersion:
    """A version whose columns were not recognised."""
    version = make_dataset(project, "Reviews", by=ed, ready=False).newest()
    assert version
    assert version.job
    version.record_problems({"columns": ["sentence", "label"], "first_rows": []})
    finish(version.job, State.FAILED, error_code="columns_unclear", error_message="Which column?")
    return version


def answer(client: Client, version: DatasetVersion, **fields: str) -> object:
    address = reverse("dataset-import-again", args=[version.dataset_id])
    return client.post(address, {"version": version.version, **fields})


def test_chosen_columns_queue_another_import(client: Client, ed: User, unclear: DatasetVersion) -> None:
    client.force_login(ed)
    answer(client, unclear, prompt_column="sentence", completion_column="label")
    again = DatasetVersion.objects.get()
    assert again.job
    assert again.state == "queued"
    assert (again.job.spec["prompt_column"], again.job.spec["completion_column"]) == ("sentence", "label")
    assert again.job.spec["upload"].endswith(unclear.upload)


def test_skipping_invalid_rows_keeps_the_columns(client: Client, ed: User, unclear: DatasetVersion) -> None:
    DatasetVersion.objects.update(completion_column="label", group_column="author")
    client.force_login(ed)
    answer(client, unclear, skip_bad_rows="on")
    again = DatasetVersion.objects.get()
    assert again.job
    assert again.job.spec["skip_bad_rows"] is True
    assert (again.job.spec["completion_column"], again.job.spec["group_column"]) == ("label", "author")


def test_a_recognised_format_needs_no_answer_column(
    client: Client, ed: User, unclear: DatasetVersion
) -> None:
    DatasetVersion.objects.update(group_column="autor")
    unclear.record_problems({"shape": "prompt_completion", "columns": ["prompt", "completion", "author"]})
    client.force_login(ed)
    answer(client, unclear, completion_column="", group_column="author")
    again = DatasetVersion.objects.get()
    assert again.job
    assert (again.job.spec["completion_column"], again.job.spec["group_column"]) == ("", "author")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_column": "", "completion_column": "label", "group_column": "label"},
        {"prompt_column": "sentence", "completion_column": ""},
        {"prompt_column": "sentence", "completion_column": "no such column"},
    ],
)
def test_invalid_columns_are_refused(
    client: Client, ed: User, unclear: DatasetVersion, fields: dict[str, str]
) -> None:
    client.force_login(ed)
    assert answer(client, unclear, **fields).status_code == 422  # type: ignore[attr-defined]
    assert DatasetVersion.objects.get().state == State.FAILED


def test_an_imported_version_never_changes(client: Client, ed: User, dataset: Dataset) -> None:
    version = dataset.newest_ready()
    assert version
    client.force_login(ed)
    response = answer(client, version, skip_bad_rows="on")
    assert response.url == version.get_absolute_url()  # type: ignore[attr-defined]
    assert DatasetVersion.objects.get().state == State.SUCCEEDED
