"""The origin of a run: everything that could change its result."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import TrainingRun, User
from dashboard.models.training.training_run import RECORDED

MEASURED = {
    "tokenizer_sha256": "aa" * 32,
    "chat_template_sha256": "bb" * 32,
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "attempt": 2,
}
# Known before the launch; the engine measures the rest.
FROZEN = {
    "hyperparameters",
    "target_modules",
    "base_model",
    "base_revision",
    "base_sha256",
    "dataset_sha256",
    "validation_sha256",
    "test_sha256",
    "seed",
}


def ended(run: TrainingRun) -> TrainingRun:
    run.end(TrainingRun.Outcome.SUCCEEDED, step=10, measured=dict(MEASURED))
    return run


def test_the_origin_lists_everything_that_can_change_a_result(run: TrainingRun) -> None:
    origin = ended(run).origin
    assert origin.keys() == FROZEN | set(RECORDED)
    assert {name: origin[name] for name in RECORDED} == MEASURED
    assert origin["hyperparameters"] == run.hyperparameters
    assert origin["target_modules"]["target_modules"]
    assert origin["target_modules"]["trainable_parameters"] > 0
    assert origin["base_model"] == run.base_model.hub_id
    assert (origin["base_revision"] or "") == run.base_model.revision
    assert (origin["base_sha256"] or "") == run.base_model.sha256
    assert origin["dataset_sha256"] == run.dataset_version.sha256
    assert origin["test_sha256"] == run.dataset_version.test_sha256
    assert origin["seed"] == run.hyperparameters["seed"]
    assert "path" not in str(origin)


def test_the_origin_contains_automatic_changes(run: TrainingRun) -> None:
    run.adjustments = [{"reason": "out_of_memory", "attempt": 1, "changes": {"max_length": [512, 256]}}]
    assert run.origin["hyperparameters"]["max_length"] == 256


def test_page_and_api_show_the_origin(client: Client, api: Client, vera: User, run: TrainingRun) -> None:
    ended(run)
    client.force_login(vera)
    page = client.get(reverse("training-run-detail", args=[run.pk])).content.decode()
    for words in ("Checksums, versions and device", "aa" * 32, "bb" * 32, "ef" * 32, "torch 2.13.0"):
        assert words in page
    assert api.get(f"/api/v1/runs/{run.pk}").json()["origin"] == run.origin
