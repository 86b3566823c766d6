"""A validation file of a job: its rows are the validation rows, in place of the training file's."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from django.test import Client
from openai import OpenAI

from dashboard.forms.training.hyperparameters import format_value
from dashboard.models import BaseModel, Dataset, DatasetVersion, Project, State, TrainingRun, User
from dashboard.models.studies.results.comparison import arms_of
from dashboard.models.studies.results.export import public_spec
from dashboard.models.training.forecast import RunForecaster
from dashboard.presenters.comparison_tables import settings_table
from tests.conftest import finish, make_dataset
from tests.dashboard.training.test_training_run_create import URL, entered
from workers.contract.hyperparameters import Hyperparameters


@pytest.fixture
def given(base_model: BaseModel, dataset: Dataset) -> dict[str, Any]:
    return {"model": base_model.hub_id, "training_file": f"file-{dataset.versions.get().pk}"}


@pytest.fixture
def validation(project: Project) -> DatasetVersion:
    """A file with other rows than the training file's."""
    version = make_dataset(project, "Checked by hand").versions.get()
    version.sha256 = "12" * 32
    version.save()
    return version


@pytest.fixture
def run(client: OpenAI, given: dict[str, Any], validation: DatasetVersion) -> TrainingRun:
    client.fine_tuning.jobs.create(**given, validation_file=f"file-{validation.pk}", seed=1)
    return TrainingRun.objects.get()


def refused(client: OpenAI, given: dict[str, Any], version: DatasetVersion) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as refusal:
        client.fine_tuning.jobs.create(**given, validation_file=f"file-{version.pk}")
    assert not TrainingRun.objects.exists()
    return refusal.value


def test_job_names_it_and_the_engine_reads_it(
    client: OpenAI, given: dict[str, Any], run: TrainingRun, validation: DatasetVersion
) -> None:
    job = client.fine_tuning.jobs.retrieve(f"ftjob-{run.pk}")
    assert (job.training_file, job.validation_file) == (given["training_file"], f"file-{validation.pk}")
    assert run.job
    assert run.job.spec["validation_data"]["sha256"] == validation.sha256
    assert run.job.spec["data"]["sha256"] == run.dataset_version.sha256


@pytest.mark.parametrize("file", ["file-999", "../../etc/passwd", "file-metrics-1", ""])
def test_unknown_file_is_not_found(client: OpenAI, given: dict[str, Any], file: str) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.fine_tuning.jobs.create(**given, validation_file=file)
    assert refusal.value.param == "validation_file"


def test_file_of_another_project_is_not_found(
    client: OpenAI, given: dict[str, Any], other_project: Project
) -> None:
    refusal = refused(client, given, make_dataset(other_project).versions.get())
    assert (refusal.status_code, refusal.param) == (404, "validation_file")


def test_file_is_imported_first(client: OpenAI, given: dict[str, Any], project: Project) -> None:
    version = make_dataset(project, "Waiting", ready=False).versions.get()
    waiting = refused(client, given, version)
    assert (waiting.status_code, waiting.code, waiting.param) == (
        400,
        "file_not_processed",
        "validation_file",
    )
    assert waiting.response.headers["x-should-retry"] == "true"
    assert version.job
    finish(version.job, State.FAILED, error_code="bad_data", error_message="Row 2 has no answer.")
    failed = refused(client, given, version)
    assert (failed.status_code, failed.param) == (400, "validation_file")
    assert "Row 2 has no answer." in failed.message


def test_plain_text_validates_no_answers(
    client: OpenAI, given: dict[str, Any], validation: DatasetVersion
) -> None:
    validation.report["shape"] = "text"
    validation.save()
    refusal = refused(client, given, validation)
    assert (refusal.status_code, refusal.param) == (400, "validation_file")


def test_used_file_is_kept(client: OpenAI, run: TrainingRun, validation: DatasetVersion) -> None:
    with pytest.raises(openai.ConflictError) as refusal:
        client.files.delete(f"file-{validation.pk}")
    assert refusal.value.code == "in_use"


def test_forecast_counts_its_rows(run: TrainingRun, validation: DatasetVersion) -> None:
    learn = Hyperparameters(max_steps=100)
    own, other = (
        RunForecaster(run.base_model, run.dataset_version, validation_version=version).workload(learn)
        for version in (None, validation)
    )
    # Two rows of the training file, or all twenty of the other one.
    assert own.validation_tokens / own.validations == pytest.approx(
        other.validation_tokens / other.validations / 10
    )


def test_equal_run_has_the_same_validation_rows(run: TrainingRun, given: dict[str, Any]) -> None:
    same = TrainingRun.objects.get()
    same.freeze(Hyperparameters(**run.hyperparameters))
    assert same.spec_digest == run.spec_digest
    same.validation_version = None
    same.freeze(Hyperparameters(**run.hyperparameters))
    assert same.spec_digest not in ("", run.spec_digest)


def test_other_validation_rows_make_another_arm(run: TrainingRun, validation: DatasetVersion) -> None:
    other = TrainingRun.objects.get()
    other.validation_version = None
    assert len(arms_of([run, run])) == 1
    assert len(arms_of([run, other])) == 2
    assert [row["values"] for row in settings_table([run, other]) if row["name"] == "validation_dataset"] == [
        [str(validation), format_value(None, "validation_dataset")]
    ]


def test_exported_settings_have_no_folder(run: TrainingRun) -> None:
    assert "path" not in str(public_spec(run.spec))


@pytest.fixture
def browser(ed: User) -> Client:
    browser = Client()
    browser.force_login(ed)
    return browser


def test_clone_keeps_it(browser: Client, run: TrainingRun, validation: DatasetVersion) -> None:
    page = browser.get(URL, {"clone": run.pk})
    assert page.context["plan"].forecaster.validation_version == validation
    assert b'name="validation_version"' in page.content
    values = entered(run.dataset_version.dataset, run.base_model, validation_version=validation.pk)
    browser.post(URL, values)
    clone = TrainingRun.objects.latest("pk")
    assert (clone.pk, clone.validation_version) != (run.pk, None)
    assert b'name="validation_version"' not in browser.get(URL).content


def test_pages_link_run_and_file(browser: Client, run: TrainingRun, validation: DatasetVersion) -> None:
    assert validation.get_absolute_url() in browser.get(run.get_absolute_url()).content.decode()
    page = browser.get(validation.get_absolute_url())
    assert list(page.context["runs"]) == [run]
    (row,) = [row for row in browser.get("/datasets/").context["datasets"] if row == validation.dataset]
    assert row.run_count == 1
