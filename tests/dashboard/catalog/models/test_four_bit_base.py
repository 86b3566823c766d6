"""A base model in 4 bits: offered, accepted and claimed only where a worker has CUDA and bitsandbytes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import (
    BaseModel,
    Dataset,
    Evaluation,
    Job,
    Project,
    Study,
    TargetModuleConfig,
    TrainingRun,
    User,
    WorkerNode,
)
from dashboard.models.evaluations.evaluation import EvaluationQuerySet
from dashboard.models.studies.launch import launch_study
from dashboard.models.training.forecast import RunForecaster
from tests.conftest import make_run
from tests.dashboard.conftest import publish
from tests.dashboard.studies.factories import end_training, make_arms
from tests.dashboard.training.test_training_run_create import entered
from workers.contract.errors import SpecError
from workers.contract.hyperparameters import Hyperparameters
from workers.supervision import heartbeat

FORM = reverse("training-run-create")
RUNS, FORECAST = "/api/v1/runs", "/api/v1/forecast"


def make_node(name: str, *, able: bool, **facts: Any) -> None:
    WorkerNode.objects.register(
        name, queue="gpu", host="box", pid=1, device=name, memory_bytes=8 * 10**9, loads_4bit=able, **facts
    )


@pytest.fixture
def able(db: None) -> None:
    make_node("cuda0@box", able=True)


@pytest.fixture
def body(dataset: Dataset, base_model: BaseModel) -> dict[str, Any]:
    return {
        "dataset": dataset.pk,
        "base_model": base_model.pk,
        "target_module_config": "efficient",
        "hyperparameters": {"r": 4, "max_steps": 10, "max_length": 64, "load_in_4bit": True},
    }


def claimed_by(worker: str) -> Job | None:
    return Job.objects.claim("gpu", worker=worker, slot=worker, host="box", pid=1, pid_started=1.0)


def test_without_a_capable_worker_the_form_refuses_4_bits(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    make_node("cpu@box", able=False)
    client.force_login(ed)
    page = client.get(FORM)
    field = page.context["form"]["load_in_4bit"]
    assert "disabled" in str(field)
    assert "Not available now: no connected worker has both an NVIDIA GPU" in page.content.decode()
    answer = client.post(FORM, entered(dataset, base_model, load_in_4bit="on"))
    assert answer.status_code == 422
    assert "the package bitsandbytes" in str(answer.context["form"].errors["load_in_4bit"])
    assert "disabled" not in str(answer.context["form"]["load_in_4bit"])
    assert not TrainingRun.objects.exists()


def test_with_a_capable_worker_the_form_accepts_4_bits(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel, able: None
) -> None:
    client.force_login(ed)
    page = client.get(FORM)
    assert "disabled" not in str(page.context["form"]["load_in_4bit"])
    assert b"Not available now" not in page.content
    assert client.post(FORM, entered(dataset, base_model, load_in_4bit="on")).status_code == 302
    run = TrainingRun.objects.get()
    assert run.in_4bit
    assert run.job is not None
    assert run.job.needs_4bit
    again = client.get(FORM, {"clone": run.pk}).context
    assert ("load_in_4bit", "yes", "no") in again["plan"].differences


@pytest.mark.parametrize("url", [RUNS, FORECAST])
def test_without_a_capable_worker_the_api_refuses_4_bits(api: Client, body: dict[str, Any], url: str) -> None:
    make_node("gone@box", able=True)
    WorkerNode.objects.update(stopped_at="2026-01-01T00:00:00Z")
    answer = api.post(url, body, content_type="application/json")
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert "load_in_4bit" in error["field"]
    assert "has both an NVIDIA GPU and the package bitsandbytes" in error["message"]


def test_with_a_capable_worker_the_api_accepts_4_bits(api: Client, body: dict[str, Any], able: None) -> None:
    answer = api.post(RUNS, body, content_type="application/json")
    assert answer.status_code == 202
    assert answer.json()["hyperparameters"]["load_in_4bit"] is True
    wrong = {**body, "hyperparameters": {"load_in_4bit": "yes"}}
    assert api.post(RUNS, wrong, content_type="application/json").status_code == 422


@pytest.mark.jobs
def test_a_4_bit_job_waits_for_a_capable_worker(
    project: Project, ed: User, dataset: Dataset, base_model: BaseModel, able: None
) -> None:
    make_node("cpu@box", able=False)
    packed = make_run(project, dataset, base_model, by=ed, load_in_4bit=True)
    whole = make_run(project, dataset, base_model, by=ed)
    assert claimed_by("cpu@box") == whole.job
    assert claimed_by("other@box") is None
    assert claimed_by("cuda0@box") == packed.job


def stop_workers() -> None:
    WorkerNode.objects.update(stopped_at="2026-01-01T00:00:00Z")


def make_packed_study(project: Project, dataset: Dataset, base_model: BaseModel, by: User) -> Study:
    version = dataset.newest_ready()
    assert version
    return launch_study(
        project=project,
        by=by,
        name="Placement",
        dataset_version=version,
        base_model=base_model,
        arms=make_arms("efficient", "quality", load_in_4bit=True),
        seeds=[1],
        metric="exact_match",
        learning_rates=[1e-4, 2e-4],
    )


def test_a_study_continues_while_its_worker_is_offline(
    project: Project, ed: User, dataset: Dataset, base_model: BaseModel, able: None
) -> None:
    study = make_packed_study(project, dataset, base_model, ed)
    stop_workers()
    end_training(study.jobs().get())
    study.advance()
    assert study.cancelled_at is None
    assert [run.seed for run in study.runs().filter(rung=None)] == [1, 1]


def test_without_a_capable_worker_a_4_bit_study_is_refused(
    project: Project, ed: User, dataset: Dataset, base_model: BaseModel, able: None
) -> None:
    stop_workers()
    with pytest.raises(SpecError, match="both an NVIDIA GPU"):
        make_packed_study(project, dataset, base_model, ed)
    assert not Study.objects.exists()


def test_the_evaluation_loads_the_base_as_the_run_did(
    project: Project, ed: User, dataset: Dataset, base_model: BaseModel, able: None
) -> None:
    for in_4bit in (True, False):
        run = make_run(project, dataset, base_model, by=ed, load_in_4bit=in_4bit)
        objects: EvaluationQuerySet = Evaluation.objects.all()
        job = objects.submit(publish(run), None)
        assert (job.spec["load_in_4bit"], job.needs_4bit) == (in_4bit, in_4bit)


def test_the_run_page_says_that_a_capable_worker_is_missing(
    client: Client,
    vera: User,
    project: Project,
    ed: User,
    dataset: Dataset,
    base_model: BaseModel,
    able: None,
) -> None:
    run = make_run(project, dataset, base_model, by=ed, load_in_4bit=True)
    client.force_login(vera)
    page = client.get(run.get_absolute_url()).content
    assert b"can load the base model in 4 bits" not in page
    assert b"starts in a moment" in page
    make_node("cuda0@box", able=False)
    page = client.get(run.get_absolute_url()).content
    assert b"No connected worker can load the base model in 4 bits" in page
    assert b"starts in" not in page


def test_the_adapter_page_loads_the_base_in_4_bits(
    client: Client,
    vera: User,
    project: Project,
    ed: User,
    dataset: Dataset,
    base_model: BaseModel,
    able: None,
) -> None:
    adapter = publish(make_run(project, dataset, base_model, by=ed, load_in_4bit=True))
    client.force_login(vera)
    text = client.get(adapter.get_absolute_url()).content.decode()
    assert "trained and evaluated on it in 4 bits (NF4)" in text
    assert "quantization_config=in_4bit" in text
    compile(adapter.usage(), "usage", "exec")


def test_the_forecast_lists_only_capable_workers(base_model: BaseModel, dataset: Dataset, able: None) -> None:
    make_node("cpu@box", able=False)
    forecaster = RunForecaster.load(base_model, dataset.newest_ready())
    resolution = TargetModuleConfig.objects.get(slug="efficient").resolve(base_model)
    found = {
        in_4bit: forecaster.forecast(resolution, Hyperparameters(r=4, max_length=64, load_in_4bit=in_4bit))
        for in_4bit in (True, False)
    }
    assert [one.device for one in found[True].devices] == ["cuda0@box"]
    assert {one.device for one in found[False].devices} == {"cpu@box", "cuda0@box"}


@pytest.mark.parametrize(
    ("gpu", "installed", "able"), [(0, True, True), (0, False, False), (None, True, False)]
)
def test_a_worker_is_capable_with_a_gpu_and_bitsandbytes(
    gpu: int | None, installed: bool, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.machinery.ModuleSpec("bitsandbytes", None) if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "bitsandbytes" else None)
    assert heartbeat.loads_4bit(gpu) is able
