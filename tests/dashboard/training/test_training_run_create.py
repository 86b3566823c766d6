"""The fine-tune form: launch, refusals, prefilled values."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.forms.training.hyperparameters import defaults
from dashboard.models import (
    BaseModel,
    ComputeBudget,
    Dataset,
    Job,
    Outbox,
    Project,
    State,
    TargetModuleConfig,
    TrainingRun,
    User,
)
from tests.conftest import make_base_model, make_dataset, make_run
from workers.target_modules.custom import Selection

URL = reverse("training-run-create")


def entered(dataset: Dataset, base_model: BaseModel, /, **changes: Any) -> dict[str, Any]:
    """Return the form's fields as a browser sends them, some of them changed."""
    version = dataset.newest_ready()
    config = TargetModuleConfig.objects.get(slug="efficient")
    values = {
        "name": "Triage",
        "dataset_version": version.pk if version else "",
        "base_model": base_model.pk,
        "target_module_config": config.pk,
        **{name: "" if value is None else str(value) for name, value in defaults().items()},
        "length": "steps",
        "max_steps": "10",
        "r": "4",
        "per_device_train_batch_size": "4",
        "gradient_accumulation_steps": "2",
        "max_length": "64",
        "idempotency_key": str(uuid.uuid4()),
    }
    return {**values, **changes}


Send = Callable[..., Any]


@pytest.fixture
def send(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> Send:
    """Return a function that posts the form as Ed, with some fields changed."""
    client.force_login(ed)
    return lambda **changes: client.post(URL, entered(dataset, base_model, **changes))


def test_it_starts_a_run_and_opens_its_page(send: Send) -> None:
    answer = send()
    run = TrainingRun.objects.get()
    assert answer["Location"] == run.get_absolute_url()
    assert (run.name, run.state, run.hyperparameters["lora_alpha"]) == ("Triage", State.QUEUED, 8)
    assert Outbox.objects.filter(job=run.job).count() == 1


def test_it_starts_one_run_for_a_double_click(send: Send) -> None:
    key = str(uuid.uuid4())
    first, second = send(idempotency_key=key), send(idempotency_key=key)
    assert first["Location"] == second["Location"]
    assert TrainingRun.objects.count() == 1
    send()
    assert TrainingRun.objects.count() == 2, "another form has another key"


def test_it_names_a_nameless_run(send: Send) -> None:
    send(name="")
    assert TrainingRun.objects.get().name == "Tickets Efficient"


def test_it_starts_a_run_by_epochs(send: Send) -> None:
    send(length="epochs", num_train_epochs="2", max_steps="")
    run = TrainingRun.objects.get()
    assert (run.hyperparameters["num_train_epochs"], run.hyperparameters["max_steps"]) == (2.0, None)
    assert run.total_steps == 4  # 16 training rows, 8 per step, twice


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", "0"), ("r", "4.5"), ("r", ""), ("learning_rate", "1e9"), ("learning_rate", "nan"),
        ("lr_scheduler_type", "magic"), ("max_steps", ""), ("max_steps", "9" * 40), ("length", "forever"),
        ("loraplus_lr_ratio", "65"), ("name", "a\0b"), ("dataset_version", ""), ("dataset_version", "abc"),
        ("base_model", "987654"), ("target_module_config", ""), ("idempotency_key", "not a key"),
    ],
)  # fmt: skip
def test_it_refuses_bad_input_beside_its_field(send: Send, field: str, value: str) -> None:
    answer = send(**{field: value})
    assert answer.status_code == 422
    assert answer.context["form"].errors[field]
    assert TrainingRun.objects.count() == Job.objects.filter(kind="train").count() == 0


def test_an_error_names_the_limits(send: Send) -> None:
    assert b"Enter a number from 0.0000001 to 0.1." in send(learning_rate="1e9").content
    assert b"Enter a whole number from 1 to 512." in send(r="0").content


def test_it_keeps_what_was_typed(send: Send) -> None:
    answer = send(name="My own name", seed="7", r="0")
    assert b'value="My own name"' in answer.content
    assert answer.context["form"]["seed"].value() == "7"


def test_an_error_names_the_maximum_length_of_the_model(send: Send) -> None:
    assert "reads at most 512 tokens" in str(send(max_length="1024").context["form"].errors["max_length"])


def test_it_refuses_a_census_of_another_version(send: Send, base_model: BaseModel) -> None:
    BaseModel.objects.filter(pk=base_model.pk).update(census={**(base_model.census or {}), "version": 0})
    answer = send()
    assert answer.status_code == 422
    assert "Inspect it again" in str(answer.context["form"].errors["base_model"])


def test_it_refuses_objects_of_another_project(send: Send, other_project: Project) -> None:
    foreign = make_dataset(other_project, "Secret")
    model = make_base_model(other_project, "Theirs", "example/theirs")
    version = foreign.newest_ready()
    answer = send(dataset_version=version.pk if version else 0, base_model=model.pk)
    assert set(answer.context["form"].errors) == {"dataset_version", "base_model"}


def test_it_refuses_a_dataset_that_is_not_imported(send: Send, project: Project) -> None:
    waiting = make_dataset(project, "Waiting", ready=False).newest()
    assert "dataset_version" in send(dataset_version=waiting.pk if waiting else 0).context["form"].errors


def test_it_prefills_the_dataset_of_the_link(client: Client, ed: User, project: Project) -> None:
    make_base_model(project)
    chosen, _other = make_dataset(project, "One"), make_dataset(project, "Two")
    client.force_login(ed)
    form = client.get(URL, {"dataset": chosen.pk}).context["form"]
    version = chosen.newest_ready()
    assert form.initial["dataset_version"] == (version.pk if version else 0)


def test_it_prefills_nothing_of_another_project(
    client: Client, otto: User, run: TrainingRun, dataset: Dataset
) -> None:
    client.force_login(otto)
    assert client.get(URL, {"clone": run.pk}).status_code == 404
    assert client.get(URL, {"dataset": dataset.pk}).status_code == 404


@pytest.mark.parametrize("text", ["-1", "9" * 30, "٣"])
def test_it_ignores_invalid_ids_in_a_link(client: Client, ed: User, project: Project, text: str) -> None:
    client.force_login(ed)
    assert client.get(URL, {"clone": text, "dataset": text, "base_model": text}).status_code in (200, 404)


def test_length_and_learning_rate_are_automatic_until_numbers_are_typed(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    form = client.get(URL).context["form"]
    assert (form["length"].value(), form["learning_rate"].value()) == ("quick", None)
    assert not form.has_own_values()
    for changes, rate, steps in (({}, 0.013, 6), ({"learning_rate": "0.002"}, 0.002, 6)):
        client.post(URL, entered(dataset, base_model, length="quick", **changes))
        run = TrainingRun.objects.order_by("pk").last()
        assert run
        assert (run.hyperparameters["learning_rate"], run.hyperparameters["max_steps"]) == (rate, steps)


def test_automatic_settings_are_shown_as_numbers(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    values = entered(dataset, base_model, length="quick")
    for address in (URL, reverse("training-run-forecast")):
        page = client.get(address, values).content.decode()
        assert "Learning rate 0.013, 6 steps (3 epochs), about" in " ".join(page.split())


def test_it_preselects_the_recommended_preset_and_the_bundled_model(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    answer = client.get(URL)
    assert answer.context["plan"].card.config.slug == "efficient"
    assert b"Recommended default: smallest adapter." in answer.content
    assert b"Start fine-tune" in answer.content


def test_without_datasets_it_offers_the_sample(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert reverse("dataset-sample").encode() in client.get(URL).content


def test_it_escapes_names(client: Client, ed: User, project: Project, base_model: BaseModel) -> None:
    make_dataset(project, "<img src=x onerror=alert(1)>")
    client.force_login(ed)
    assert b"<img src=x" not in client.get(URL).content


def test_a_clone_of_a_run_without_its_dataset_still_opens(client: Client, ed: User, run: TrainingRun) -> None:
    make_run(run.project, run.dataset_version.dataset, run.base_model, name="Again")
    Job.objects.filter(pk=run.dataset_version.job_id or 0).update(state=State.FAILED)
    client.force_login(ed)
    assert client.get(URL, {"clone": run.pk}).status_code == 200


def model_with_gaps(base_model: BaseModel) -> BaseModel:
    """Return the model with an attention output in the second of two layers only."""
    census = base_model.census or {}
    for group in census["groups"]:
        if group["role"] == "attn_out":
            group["layers"] = [1]
    BaseModel.objects.filter(pk=base_model.pk).update(census=census)
    return BaseModel.objects.get(pk=base_model.pk)


def test_warnings_are_confirmed_before_the_launch(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    values = entered(dataset, model_with_gaps(base_model))
    for ticked in ("", "yes"):
        page = client.post(URL, {**values, "confirmed": ticked})
        assert page.status_code == 422
        assert b"Read the warnings, then tick this box." in page.content
    resolution = page.context["plan"].card.resolution
    assert resolution.confirmations[0].encode() in page.content
    assert client.post(URL, {**values, "confirmed": resolution.confirmation_key}).status_code == 302
    run = TrainingRun.objects.get()
    assert (run.confirmed_by, run.confirmations) == (ed, list(resolution.confirmations))
    assert b"Confirmed before the launch" in client.get(run.get_absolute_url()).content


def test_a_clone_keeps_the_version_of_its_preset(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    configs = TargetModuleConfig.objects
    old, new = (
        configs.compose(project=project, by=ed, name="Ours", selection=Selection((name,)))
        for name in ("o_proj", "q_proj")
    )
    client.post(URL, entered(dataset, base_model, target_module_config=old.pk))
    shown = [card.config for card in client.get(URL).context["cards"]]
    assert new in shown
    assert old not in shown
    page = client.get(URL, {"clone": TrainingRun.objects.get().pk})
    assert page.context["plan"].card.config == old
    assert b"Ours v1" in page.content


def test_adapter_options_reach_the_spec(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    options = {
        "use_rslora": "on",
        "use_dora": "on",
        "autocast_adapter_dtype": "False",
        "loraplus_lr_ratio": "16",
    }
    assert client.post(URL, entered(dataset, base_model, **options)).status_code == 302
    run = TrainingRun.objects.get()
    hyperparameters = run.hyperparameters
    assert (
        hyperparameters["use_rslora"],
        hyperparameters["use_dora"],
        hyperparameters["autocast_adapter_dtype"],
    ) == (True, True, False)
    assert hyperparameters["loraplus_lr_ratio"] == 16
    # o_proj of two 32-wide layers: r * 2 * (32 + 32), and DoRA's 2 * 32.
    assert run.spec["target"]["trainable_parameters"] == run.forecast["trainable_parameters"] == 512 + 64
    again = client.get(URL, {"clone": run.pk}).context["plan"]
    assert {name for name, _value, _default in again.differences} >= set(options)


def test_dora_with_dropout_is_refused(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    page = client.post(URL, entered(dataset, base_model, use_dora="on", lora_dropout="0.1"))
    assert page.context["form"].errors["lora_dropout"]


# The compute budget


def test_a_run_beyond_the_budget_is_refused(
    client: Client, ed: User, mara: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    ComputeBudget.objects.change(project, 0, mara)
    client.force_login(ed)
    answer = client.post(URL, entered(dataset, base_model))
    assert answer.status_code == 422
    assert "Raise the budget" not in answer.content.decode()
    assert not TrainingRun.objects.exists()
