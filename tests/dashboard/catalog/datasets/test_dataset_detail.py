"""A dataset's page: import report, preview, and next steps after a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse

from dashboard.charts.curves import length_bars
from dashboard.models import Dataset, DatasetVersion, Project, State, User, WorkerNode
from tests.conftest import finish, make_dataset


def failed(project: Project, by: User, code: str, report: dict[str, Any]) -> DatasetVersion:
    version = make_dataset(project, "Broken", by=by, ready=False).newest()
    assert version
    assert version.job
    version.record_problems(report)
    finish(version.job, State.FAILED, error_code=code, error_message="2 of 5 rows cannot be used.")
    return version


def bad_rows(project: Project, by: User) -> DatasetVersion:
    problem = {"row": 4, "column": "completion", "message": "The answer is empty. <b>"}
    found = {
        "rows": 3,
        "bad_rows": 2,
        "total_rows": 5,
        "problems": [problem],
        "problem_count": 2,
        "columns": ["a", "b"],
    }
    return failed(project, by, "bad_data", found)


def page_of(client: Client, dataset: Dataset, **query: str) -> str:
    return client.get(reverse("dataset-detail", args=[dataset.pk]), query).content.decode()


def test_texts_of_an_imported_version(client: Client, ed: User, dataset: Dataset) -> None:
    client.force_login(ed)
    page = page_of(client, dataset)
    assert f"{reverse('training-run-create')}?dataset={dataset.pk}" in page
    for words in ("Prompt and completion", "Training rows", "Version 1", "Finished"):
        assert words in page


def test_the_preview_marks_learned_text(client: Client, ed: User, dataset: Dataset) -> None:
    version = dataset.newest_ready()
    assert version
    segments = [{"text": "<|user|>hello", "learned": False}, {"text": "hi", "learned": True}]
    version.folder().mkdir(parents=True, exist_ok=True)
    preview = version.folder() / "preview.json"
    preview.write_text(json.dumps([{"row": 1, "text": "", "segments": segments, "tokens": 7}]))
    client.force_login(ed)
    page = page_of(client, dataset)
    preview.unlink()
    assert '&lt;|user|&gt;hello<mark class="learned">hi</mark>' in page


@pytest.mark.parametrize("route", ["dataset-detail", "dataset-progress"])
def test_a_waiting_import_has_an_estimated_start(
    client: Client, ed: User, project: Project, route: str
) -> None:
    waiting = make_dataset(project, "Fresh", by=ed, ready=False)
    client.force_login(ed)
    assert "starts in a moment" not in client.get(reverse(route, args=[waiting.pk])).content.decode()
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    page = client.get(reverse(route, args=[waiting.pk])).content.decode()
    assert "Position 1 in the queue, starts in a moment." in page


def test_a_failure_lists_invalid_rows_and_offers_to_skip_them(
    client: Client, ed: User, project: Project
) -> None:
    version = bad_rows(project, ed)
    client.force_login(ed)
    page = page_of(client, version.dataset)
    for words in (
        "2 of 5 rows cannot be used.",
        "Import the 3 valid rows only",
        "The answer is empty. &lt;b&gt;",
    ):
        assert words in page


def test_too_few_valid_rows_are_not_offered(client: Client, ed: User, project: Project) -> None:
    problems = [{"row": 3, "column": "prompt", "message": "Empty."}]
    few = failed(project, ed, "bad_data", {"rows": 2, "problems": problems})
    client.force_login(ed)
    page = page_of(client, few.dataset)
    assert "good rows only" not in page
    assert "Upload a corrected file" in page
    few.record_problems({"rows": 9, "problems": []})
    assert "good rows only" not in page_of(client, few.dataset)


def divided(dataset: Dataset, **report: Any) -> DatasetVersion:
    """The dataset's version, with what an import says of its split."""
    version = dataset.newest_ready()
    assert version
    version.report |= report
    version.save()
    return version


def test_the_split_states_grouped_and_left_out_rows(client: Client, vera: User, dataset: Dataset) -> None:
    notes = ["38 rows are nearly the same as a held-out row of another group and left out of training."]
    divided(dataset, split_notes=notes, groups={"train": 16, "validation": 2, "test": 1}, near_duplicates={})
    client.force_login(vera)
    page = page_of(client, dataset)
    assert notes[0] in page
    assert "share at least 80 %" in page
    assert "<dt>Groups in the test split</dt><dd>1</dd>" in page


def test_the_split_states_that_there_are_no_near_duplicates(
    client: Client, vera: User, dataset: Dataset
) -> None:
    divided(dataset, split_notes=[], near_duplicates={"rows": 0}, groups={"test": 2})
    client.force_login(vera)
    page = page_of(client, dataset)
    assert "No two prompts are the same or nearly the same" in page
    assert "Groups in the test split" not in page


def test_the_checksum_of_the_test_rows_is_shown(client: Client, vera: User, dataset: Dataset) -> None:
    client.force_login(vera)
    assert "ef" * 32 in page_of(client, dataset)
    DatasetVersion.objects.update(test_sha256="")
    assert "frozen" not in page_of(client, dataset)


def test_editors_see_suggested_group_columns(client: Client, ed: User, vera: User, dataset: Dataset) -> None:
    version = divided(dataset, group_columns=[{"name": "customer & co", "values": 1200}])
    address = f"{reverse('dataset-create')}?name={dataset.name}&amp;group_column=customer%20%26%20co"
    client.force_login(ed)
    page = page_of(client, dataset)
    assert "<code>customer &amp; co</code> (1,200 different values)" in page
    assert address in page
    client.force_login(vera)
    assert address not in page_of(client, dataset)
    version.group_column = "customer & co"
    version.save()
    assert "1,200 different values" not in page_of(client, dataset)
    assert "<dt>Group column</dt><dd>customer &amp; co</dd>" in page_of(client, dataset)


def test_unrecognised_columns_can_be_chosen(client: Client, ed: User, project: Project) -> None:
    found = {
        "columns": ["sentence", "label", "user"],
        "first_rows": [{"sentence": "So good", "label": "1"}],
        "group_columns": [{"name": "user", "values": 15}],
    }
    version = failed(project, ed, "columns_unclear", found)
    client.force_login(ed)
    page = page_of(client, version.dataset)
    options = (
        '<option value="label">label</option>',
        '<option value="user">user (15 different values)</option>',
    )
    for text in ("Choose the columns", "So good", *options):
        assert text in page


def test_a_viewer_cannot_choose_columns(client: Client, ed: User, vera: User, project: Project) -> None:
    version = failed(project, ed, "columns_unclear", {"columns": ["a", "b"], "first_rows": []})
    client.force_login(vera)
    page = page_of(client, version.dataset)
    assert reverse("dataset-import-again", args=[version.dataset_id]) not in page
    assert "Editors and managers" in page


def test_a_failure_without_a_report_shows_the_log(client: Client, ed: User, project: Project) -> None:
    version = failed(project, ed, "worker_lost", {})
    log = Path(settings.DATA_DIR) / "logs" / f"job-{version.job_id}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("Killed by the kernel <oom>\n")
    client.force_login(ed)
    page = page_of(client, version.dataset)
    assert "Import again" in page
    assert "Killed by the kernel &lt;oom&gt;" in page


def test_an_older_version_is_opened(client: Client, ed: User, dataset: Dataset, project: Project) -> None:
    make_dataset(project, dataset.name, by=ed, ready=False)
    client.force_login(ed)
    assert client.get(reverse("dataset-detail", args=[dataset.pk])).context["version"].version == 2
    assert (
        client.get(reverse("dataset-detail", args=[dataset.pk]) + "?version=1").context["version"].version
        == 1
    )


@pytest.mark.parametrize("number", ["7", "x", "9" * 30])
def test_an_unknown_version_is_not_found(client: Client, ed: User, dataset: Dataset, number: str) -> None:
    client.force_login(ed)
    assert client.get(reverse("dataset-detail", args=[dataset.pk]), {"version": number}).status_code == 404


def test_progress_reloads_the_page_after_the_import(client: Client, vera: User, dataset: Dataset) -> None:
    client.force_login(vera)
    assert client.get(reverse("dataset-progress", args=[dataset.pk]))["HX-Refresh"] == "true"


@pytest.fixture
def importing(ed: User, project: Project) -> Dataset:
    """A dataset whose import is running."""
    dataset = make_dataset(project, "Waiting", by=ed, ready=False)
    version = dataset.newest()
    assert version
    assert version.job
    version.job.move("claim", attempt=1)
    version.job.move("progress")
    version.job.update_progress(phase="reading", step=30, total_steps=100)
    return dataset


def test_progress_updates_the_list_of_versions(client: Client, vera: User, importing: Dataset) -> None:
    client.force_login(vera)
    page = client.get(reverse("dataset-progress", args=[importing.pk])).content.decode()
    assert "Reading and checking every row" in page
    assert "30 %" in page
    _, _, versions = page.partition('id="dataset-versions"')
    assert 'hx-swap-oob="true"' in versions
    assert "Importing" in versions
    assert "Waiting" not in versions


def test_the_report_is_downloaded(client: Client, vera: User, dataset: Dataset) -> None:
    client.force_login(vera)
    response = client.get(reverse("dataset-report", args=[dataset.pk]))
    assert response["Content-Disposition"] == 'attachment; filename="tickets-v1-report.json"'
    assert json.loads(response.content)["rows"] == 20


def test_length_bars_span_the_occurring_lengths() -> None:
    bars = length_bars({"histogram": {"up_to": [16, 32, 64, None], "rows": [0, 4, 0, 2]}})
    assert [(bar["label"], bar["count"], bar["percent"]) for bar in bars] == [
        ("17–32", 4, 100),
        ("33–64", 0, 0),
        ("65+", 2, 50),
    ]
    assert length_bars({"rows": 0}) == []
