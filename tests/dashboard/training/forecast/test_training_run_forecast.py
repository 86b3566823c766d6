"""The forecast beside the form: steps, memory, time, changed settings and missing choices."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from dashboard.models import (
    BaseModel,
    Calibration,
    ComputeBudget,
    Dataset,
    DatasetVersion,
    TargetModuleConfig,
    TrainingRun,
    User,
    WorkerNode,
)
from dashboard.models.training.forecast import RunForecaster
from tests.dashboard.training.test_training_run_create import entered
from workers.contract.hyperparameters import Hyperparameters
from workers.forecasting.training_cost import FORMULA

URL = reverse("training-run-forecast")


def ask(client: Client, ed: User, dataset: Dataset, base_model: BaseModel, **changes: Any) -> Any:
    client.force_login(ed)
    return client.get(URL, entered(dataset, base_model, **changes))


def test_it_shows_rows_per_step(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> None:
    page = ask(client, ed, dataset, base_model)
    assert "4 × 2 = 8 rows per step" in page.content.decode()
    assert (page.context["plan"].total_steps, page.context["plan"].passes) == (10, 5.0)


def test_it_lists_changed_settings(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> None:
    page = ask(client, ed, dataset, base_model, r="8", max_steps="100", max_length="512", seed="7",
               per_device_train_batch_size="8", gradient_accumulation_steps="1")  # fmt: skip
    # An alpha of twice the rank is the default.
    assert page.context["plan"].differences == (("r", "8", "16"), ("seed", "7", "42"))
    assert "2 settings differ from default" in page.content.decode()


def test_its_button_names_what_is_missing(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    assert "Choose a dataset" in ask(client, ed, dataset, base_model, dataset_version="").content.decode()
    page = ask(client, ed, dataset, base_model, target_module_config="")
    assert "Choose what to train" in page.content.decode()
    assert "Start fine-tune" in ask(client, ed, dataset, base_model).content.decode()


def test_it_accepts_incomplete_values(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    for text in ("", "1e", "1e99"):
        page = ask(client, ed, dataset, base_model, r=text, learning_rate=text, max_steps=text)
        assert page.status_code == 200


# Memory and time


@pytest.fixture
def node(db: None) -> WorkerNode:
    """A node with 8 GB of memory."""
    return WorkerNode.objects.create(
        name="gpu0@here", queue="gpu", host="here", pid=1, device="CPU, 2 cores", memory_bytes=8_000_000_000
    )


def test_it_shows_memory_per_device(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel, node: WorkerNode
) -> None:
    page = ask(client, ed, dataset, base_model).content.decode()
    assert "CPU, 2 cores" in page
    assert "of 8.0 GB" in page
    assert "fits" in page
    assert "rough" in page


def test_suggested_edits_give_their_forecast(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel, node: WorkerNode
) -> None:
    WorkerNode.objects.update(device="NVIDIA A100", memory_bytes=1_300_000_000)
    DatasetVersion.objects.update(splits={"train": 4000, "validation": 2, "test": 2})
    wide = {"per_device_train_batch_size": "512", "max_length": "512", "gradient_accumulation_steps": "1"}
    edits = ask(client, ed, dataset, base_model, **wide).context["plan"].edits
    assert any(edit.is_enough for edit in edits)
    for edit in edits:
        again = ask(client, ed, dataset, base_model, **{**wide, **edit.values}).context["plan"]
        assert again.forecast.main.peak_memory_bytes == edit.forecast.peak_memory_bytes
        assert again.hyperparameters.rows_per_step == 512
        assert (again.forecast.main.fit == "fits") == edit.is_enough


def test_it_shows_the_errors_of_past_forecasts(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel, run: TrainingRun
) -> None:
    assert "Estimated by formula" in ask(client, ed, dataset, base_model).content.decode()
    for off in (0.9, 1.05):
        Calibration.objects.create(
            base_model=base_model, device="CPU", dtype="float32", formula=FORMULA,
            estimated_memory_bytes=10**9, estimated_training_seconds=10,
            expected_memory_bytes=10**9, expected_seconds=20,
            memory_bytes=round(off * 10**9), training_seconds=10, seconds=off * 20,
        )  # fmt: skip
    page = ask(client, ed, dataset, base_model).content.decode()
    assert "Last 2 forecasts: 90 % were within ±10.0 % for memory and ±10.0 % for time." in page


def test_suggested_edits_need_no_queries(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel, node: WorkerNode
) -> None:
    counts = []
    for memory in (8_000_000_000, 8_000_000_000, 2_000_000_000):
        WorkerNode.objects.update(memory_bytes=memory)
        with CaptureQueriesContext(connection) as queries:
            ask(client, ed, dataset, base_model, per_device_train_batch_size="512", max_length="512")
        counts.append(len(queries))
    # The first one also signs in.
    assert counts[1] == counts[2]


def test_gradient_checkpointing_is_suggested(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel, node: WorkerNode
) -> None:
    WorkerNode.objects.update(memory_bytes=2_000_000_000)
    wide = {"per_device_train_batch_size": "512", "max_length": "512"}
    edits = ask(client, ed, dataset, base_model, **wide).context["plan"].edits
    assert any(edit.values == {"gradient_checkpointing": True} for edit in edits)
    again = ask(client, ed, dataset, base_model, **wide, gradient_checkpointing="on").context["plan"]
    assert not any("gradient_checkpointing" in edit.values for edit in again.edits)
    assert ("gradient_checkpointing", "yes", "no") in again.differences


def test_a_bfloat16_adapter_is_half_as_large(dataset: Dataset, base_model: BaseModel) -> None:
    resolution = TargetModuleConfig.objects.get(slug="efficient").resolve(base_model)
    hyperparameters = Hyperparameters(r=4, autocast_adapter_dtype=False)
    for device in ("NVIDIA H100", "CPU, 2 cores"):
        forecaster = RunForecaster(base_model, dataset.newest_ready(), ((device, 0),))
        usual = forecaster.forecast(resolution, Hyperparameters(r=4))
        expected = usual.bf16_adapter_bytes if "H100" in device else usual.adapter_bytes
        assert forecaster.forecast(resolution, hyperparameters).adapter_bytes == expected


def test_it_shows_the_compute_budget(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel, run: TrainingRun
) -> None:
    page = " ".join(ask(client, ed, dataset, base_model).content.decode().split())
    assert "0 h used this month, no limit; less than 0.01 h reserved for waiting and running jobs" in page
    ComputeBudget.objects.change(run.project, 20, None)
    page = " ".join(ask(client, ed, dataset, base_model).content.decode().split())
    assert "0 h of 20 h used this month; less than 0.01 h reserved" in page
    assert "cannot start" not in page


def test_it_warns_of_an_exceeded_budget(
    client: Client, ed: User, mara: User, dataset: Dataset, base_model: BaseModel
) -> None:
    ComputeBudget.objects.change(dataset.project, 0, mara)
    page = ask(client, ed, dataset, base_model).content.decode()
    assert "0 h are left, so this cannot start." in page
    assert "Raise the budget" in ask(client, mara, dataset, base_model).content.decode()
