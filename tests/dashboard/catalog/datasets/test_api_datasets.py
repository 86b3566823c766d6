"""Datasets over the API: upload, list, detail, repeated import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from pytest_django import DjangoAssertNumQueries, Settings

from dashboard.models import Dataset, DatasetVersion, Job, Project, State, User
from tests.conftest import finish, make_dataset

DATASETS = "/api/v1/datasets"
KEYS = {"id", "name", "version", "state", "rows", "splits", "problems", "error"}
ROWS = b'{"prompt": "hello", "completion": "hi"}\n' * 20


def file(content: bytes = ROWS, name: str = "rows.jsonl") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content)


def upload(api: Client, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    return api.post(DATASETS, {"file": file(), "name": "Tickets", **fields}, headers=headers or {})


def refusal(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.content
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    return error


def fail(version: DatasetVersion, code: str = "bad_data", **report: Any) -> None:
    assert version.job
    finish(version.job, State.FAILED, error_code=code, error_message="Row 2 has no answer.")
    version.record_problems(report)


def kept_uploads(settings: Settings) -> int:
    return sum(1 for path in Path(settings.UPLOAD_DIR).iterdir() if len(path.name) == 32)


def test_an_upload_queues_its_import(api: Client, project: Project) -> None:
    answer = upload(api)
    assert answer.status_code == 202
    dataset = Dataset.objects.get(project=project)
    assert answer.json() == {
        "id": dataset.pk,
        "name": "Tickets",
        "version": 1,
        "state": "queued",
        "rows": None,
        "splits": {"train": None, "validation": None, "test": None},
        "problems": [],
        "error": None,
    }
    assert answer.json() == api.get(f"{DATASETS}/{dataset.pk}").json()
    version = dataset.newest()
    assert version
    assert (Path(version.job.spec["upload"]).read_bytes(), version.filename) == (ROWS, "rows.jsonl")  # type: ignore[union-attr]


def test_columns_and_options_reach_the_spec(api: Client) -> None:
    columns = {"prompt_column": "q", "completion_column": "a", "group_column": "w"}
    upload(api, file=file(b"q,a,w\nx,y,z\n", "rows.csv"), skip_bad_rows="true", **columns)
    spec = Job.objects.get(kind="import").spec
    assert spec["group_column"] == "w"
    assert (spec["prompt_column"], spec["completion_column"], spec["skip_bad_rows"]) == ("q", "a", True)


def test_an_existing_name_adds_a_version(api: Client) -> None:
    first, second = upload(api).json(), upload(api).json()
    assert (second["id"], second["version"]) == (first["id"], 2)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"file": ""}, "file"),
        ({"file": SimpleUploadedFile("rows.jsonl", b"")}, "file"),
        ({"file": SimpleUploadedFile("rows.exe", b"MZ")}, "file"),
        ({"name": "  "}, "name"),
        ({"name": "x" * 121}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"skip_bad_rows": "perhaps"}, "skip_bad_rows"),
        ({"prompt_column": "q"}, "completion_column"),
        ({"prompt_column": "q", "completion_column": "q"}, "completion_column"),
        ({"prompt_column": "q" * 201, "completion_column": "a"}, "prompt_column"),
        ({"prompt_column": "q", "completion_column": "a", "group_column": "a"}, "group_column"),
        ({"state": "succeeded"}, "state"),
        ({"second": SimpleUploadedFile("rows.jsonl", ROWS)}, "second"),
    ],
)
def test_invalid_input_is_refused(api: Client, fields: dict[str, Any], field: str) -> None:
    assert refusal(upload(api, **fields), 422)["field"] == field
    assert not Job.objects.filter(kind="import").exists()


def test_a_repeated_key_imports_once(api: Client, settings: Settings) -> None:
    before = kept_uploads(settings)
    answers = [upload(api, {"Idempotency-Key": "once"}) for _time in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert Job.objects.filter(kind="import").count() == 1
    assert kept_uploads(settings) == before + 1


def test_a_repeated_key_still_answers_after_another_import(api: Client, ed: User) -> None:
    first = upload(api, {"Idempotency-Key": "once"}).json()
    fail(DatasetVersion.objects.get())
    DatasetVersion.objects.get().import_again(ed)
    answer = upload(api, {"Idempotency-Key": "once"})
    assert (answer.status_code, answer.json()["id"]) == (202, first["id"])
    assert DatasetVersion.objects.count() == 1


def test_an_imported_dataset_has_its_rows(api: Client, dataset: Dataset) -> None:
    answer = api.get(f"{DATASETS}/{dataset.pk}").json()
    assert set(answer) == KEYS
    assert answer["state"] == "succeeded"
    assert answer["rows"] == 20
    assert answer["splits"] == {"train": 16, "validation": 2, "test": 2}


def test_a_failed_dataset_has_its_problems(api: Client, project: Project) -> None:
    dataset = make_dataset(project, ready=False)
    problem = {"row": 2, "column": "completion", "message": "It is empty."}
    fail(dataset.newest(), problems=[problem])  # type: ignore[arg-type]
    answer = api.get(f"{DATASETS}/{dataset.pk}").json()
    assert answer["state"] == "failed"
    assert answer["problems"] == [problem]
    assert answer["error"] == {"code": "bad_data", "message": "Row 2 has no answer."}


def test_the_list_is_of_the_project(api: Client, dataset: Dataset, other_project: Project) -> None:
    make_dataset(other_project, "Theirs")
    assert [one["id"] for one in api.get(DATASETS).json()["data"]] == [dataset.pk]


@pytest.mark.parametrize("rows", [10, 60])
def test_queries_of_the_list_are_constant(
    api: Client, project: Project, rows: int, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(rows):
        make_dataset(project, f"Set {number}", ready=False)
    api.get(DATASETS)
    with django_assert_num_queries(4):
        assert len(api.get(f"{DATASETS}?limit=200").json()["data"]) == rows


def test_the_sample_is_imported_once(api: Client, project: Project) -> None:
    first, second = (api.post(f"{DATASETS}/sample") for _time in range(2))
    assert (first.status_code, first.json()["state"]) == (202, "queued")
    assert first.json() == second.json()
    assert Job.objects.filter(kind="import").count() == 1


def test_it_tells_of_all_versions(api: Client, dataset: Dataset) -> None:
    line = api.get(f"{DATASETS}/{dataset.pk}/versions").json()["data"][0]
    assert (line["id"], line["version"], line["shape"]) == (dataset.pk, 1, "prompt_completion")


def test_a_version_has_its_split(api: Client, dataset: Dataset) -> None:
    version = dataset.newest_ready()
    assert version
    version.report |= {
        "groups": {"train": 16, "validation": 2, "test": 1},
        "left_out": {"train": 3, "validation": 0},
        "split_notes": ["3 rows are left out."],
        "group_columns": [{"name": "customer", "values": 12}],
    }
    version.save()
    line = api.get(f"{DATASETS}/{dataset.pk}/versions").json()["data"][0]
    assert line["groups"] == {"train": 16, "validation": 2, "test": 1}
    assert line["left_out"] == {"train": 3, "validation": 0, "test": None}
    assert line["split_notes"] == ["3 rows are left out."]
    assert (line["group_column"], line["group_columns"]) == (None, ["customer"])
    assert line["test_sha256"] == version.test_sha256


def test_the_preview_marks_learned_text(api: Client, dataset: Dataset) -> None:
    version = dataset.newest_ready()
    assert version
    version.folder().mkdir(parents=True, exist_ok=True)
    segments = [{"text": "hello ", "learned": False}, {"text": "hi", "learned": True}]
    row = {"row": 1, "text": "hello hi", "segments": segments, "tokens": 2, "learned_tokens": 1}
    (version.folder() / "preview.json").write_text(json.dumps([row]))
    assert api.get(f"{DATASETS}/{dataset.pk}/preview").json()["data"][0]["segments"] == segments


def test_there_is_no_preview_before_the_import(api: Client, project: Project) -> None:
    waiting = make_dataset(project, "Waiting", ready=False)
    refusal(api.get(f"{DATASETS}/{waiting.pk}/preview"), 409)


def again(api: Client, dataset: Dataset, headers: dict[str, str] | None = None, **answer: Any) -> Any:
    url = f"{DATASETS}/{dataset.pk}/import-again"
    return api.post(url, answer, content_type="application/json", headers=headers or {})


def test_chosen_columns_are_imported_once_per_key(api: Client, project: Project) -> None:
    dataset = make_dataset(project, ready=False)
    fail(dataset.newest(), "columns_unclear", columns=["q", "a", "w"], problems=[])  # type: ignore[arg-type]
    columns = {"prompt_column": "q", "completion_column": "a", "group_column": "w"}
    answer = again(api, dataset, {"Idempotency-Key": "k"}, **columns)
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    spec = Job.objects.filter(kind="import").latest("pk").spec
    assert {name: spec[name] for name in columns} == columns
    answer = again(api, dataset, {"Idempotency-Key": "k"}, **columns)
    assert answer.status_code == 202
    assert refusal(again(api, dataset, {"Idempotency-Key": "k"}), 422)["field"] == "Idempotency-Key"
    assert Job.objects.filter(kind="import").count() == 2


def test_a_key_with_another_upload_is_refused(api: Client) -> None:
    assert upload(api, {"Idempotency-Key": "once"}).status_code == 202
    other = upload(api, {"Idempotency-Key": "once"}, name="Another")
    assert refusal(other, 422)["field"] == "Idempotency-Key"
    assert Dataset.objects.count() == 1


def test_invalid_rows_can_be_skipped(api: Client, project: Project) -> None:
    dataset = make_dataset(project, ready=False)
    fail(dataset.newest(), problems=[])  # type: ignore[arg-type]
    assert again(api, dataset, skip_bad_rows=True).status_code == 202
    assert Job.objects.filter(kind="import").latest("pk").spec["skip_bad_rows"] is True


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ({"prompt_column": "z", "completion_column": "a"}, "prompt_column"),
        ({"prompt_column": "a", "completion_column": "a"}, "completion_column"),
        ({"prompt_column": "q", "completion_column": "a", "group_column": "a"}, "group_column"),
        ({"prompt_column": 5}, "prompt_column"),
        ({"rows": 5}, "rows"),
    ],
)
def test_unknown_columns_are_refused(
    api: Client, project: Project, answer: dict[str, Any], field: str
) -> None:
    dataset = make_dataset(project, ready=False)
    fail(dataset.newest(), "columns_unclear", columns=["q", "a"], problems=[])  # type: ignore[arg-type]
    assert refusal(again(api, dataset, **answer), 422)["field"] == field


@pytest.mark.parametrize("column", ["\ud800", "a\0b"])
def test_unstorable_columns_are_refused(api: Client, project: Project, column: str) -> None:
    dataset = make_dataset(project, ready=False)
    # This import failed before it knew the columns, so there is no list to choose from.
    fail(dataset.newest(), problems=[])  # type: ignore[arg-type]
    answer = again(api, dataset, prompt_column=column, completion_column="a")
    assert refusal(answer, 422)["field"] == "prompt_column"


def test_an_imported_version_never_changes(api: Client, dataset: Dataset) -> None:
    refusal(again(api, dataset), 409)
