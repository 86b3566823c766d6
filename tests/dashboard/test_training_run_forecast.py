"""The plan beside the form: arithmetic, size, what differs, and what is missing."""

from __future__ import annotations

from typing import Any

from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, User
from tests.dashboard.test_training_run_create import entered

URL = reverse("training-run-forecast")


def ask(client: Client, ed: User, dataset: Dataset, base_model: BaseModel, **changes: Any) -> Any:
    client.force_login(ed)
    return client.get(URL, entered(dataset, base_model, **changes))


def test_it_says_the_arithmetic(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> None:
    page = ask(client, ed, dataset, base_model)
    assert "4 × 2 = 8 rows per step" in page.content.decode()
    assert (page.context["plan"].total_steps, page.context["plan"].passes) == (10, 5.0)


def test_it_counts_the_steps_of_passes(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    page = ask(client, ed, dataset, base_model, length="epochs", num_train_epochs="3")
    assert page.context["plan"].total_steps == 6


def test_it_lists_what_differs_from_the_default(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    page = ask(client, ed, dataset, base_model, r="16", max_steps="100", max_length="512", seed="7",
               per_device_train_batch_size="8", gradient_accumulation_steps="1")  # fmt: skip
    assert page.context["plan"].differences == (("seed", "7", "42"),)
    assert "1 setting differs from default" in page.content.decode()


def test_it_takes_twice_the_rank_for_no_difference(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    found = ask(client, ed, dataset, base_model).context["plan"].differences
    assert "lora_alpha" not in [name for name, _value, _default in found]


def test_its_button_names_what_is_missing(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    assert "Choose a dataset" in ask(client, ed, dataset, base_model, dataset_version="").content.decode()
    page = ask(client, ed, dataset, base_model, target_module_config="")
    assert "Choose what to train" in page.content.decode()
    assert "Start fine-tune" in ask(client, ed, dataset, base_model).content.decode()


def test_it_reckons_with_half_typed_values(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    for text in ("", "0", "1e", "-", "1e99"):
        page = ask(client, ed, dataset, base_model, r=text, learning_rate=text, max_steps=text)
        assert page.status_code == 200


def test_it_answers_without_any_field(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert client.get(URL).status_code == 200
