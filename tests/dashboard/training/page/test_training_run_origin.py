"""What a run records of where it comes from: each thing that could make the next one different."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import TrainingRun, User
from dashboard.models.training.training_run import RECORDED

TOLD_BY_THE_ENGINE = {
    "tokenizer_sha256": "aa" * 32,
    "chat_template_sha256": "bb" * 32,
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "attempt": 2,
}
# Full config, resolved PEFT arguments, base, data and split, seed; then what only the engine knows.
FROZEN = {
    "hyperparameters",
    "target_modules",
    "base_model",
    "base_revision",
    "base_sha256",
    "dataset_sha256",
    "test_sha256",
    "seed",
}


def ended(run: TrainingRun) -> TrainingRun:
    run.end(TrainingRun.Outcome.SUCCEEDED, step=10, measured=dict(TOLD_BY_THE_ENGINE))
    return run


def test_it_lists_everything_that_can_change_a_result(run: TrainingRun) -> None:
    origin = ended(run).origin
    assert origin.keys() == FROZEN | set(RECORDED)
    assert {name: origin[name] for name in RECORDED} == TOLD_BY_THE_ENGINE
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


def test_what_was_adjusted_after_memory_ran_out_is_what_it_names(run: TrainingRun) -> None:
    run.adjustments = [{"reason": "out_of_memory", "attempt": 1, "changes": {"max_length": [512, 256]}}]
    assert run.origin["hyperparameters"]["max_length"] == 256


def test_a_run_that_has_not_ended_knows_what_was_frozen_alone(run: TrainingRun) -> None:
    assert run.origin["dataset_sha256"]
    assert [run.origin[name] for name in RECORDED] == [None] * len(RECORDED)


def test_its_page_and_the_api_say_it(client: Client, token: str, vera: User, run: TrainingRun) -> None:
    ended(run)
    client.force_login(vera)
    page = client.get(reverse("training-run-detail", args=[run.pk])).content.decode()
    for words in ("Checksums, versions and device", "aa" * 32, "bb" * 32, "ef" * 32, "torch 2.13.0"):
        assert words in page
    api = Client(headers={"Authorization": f"Bearer {token}"})
    assert api.get(f"/api/v1/runs/{run.pk}").json()["origin"] == run.origin


def test_a_run_from_before_has_a_page_without_it(client: Client, vera: User, run: TrainingRun) -> None:
    run.end(TrainingRun.Outcome.SUCCEEDED, step=10, measured={})
    client.force_login(vera)
    assert client.get(reverse("training-run-detail", args=[run.pk])).status_code == 200
