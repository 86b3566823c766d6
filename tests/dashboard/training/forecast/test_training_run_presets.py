"""The preset cards for the chosen base model and rank."""

from __future__ import annotations

import re
from typing import Any

from django.test import Client
from django.urls import reverse

from dashboard.models import (
    BaseModel,
    Calibration,
    Dataset,
    Project,
    TargetModuleConfig,
    TrainingRun,
    User,
    WorkerNode,
)
from tests.conftest import make_base_model, make_dataset, make_run
from tests.dashboard.training.test_training_run_create import entered
from workers.forecasting.training_cost import FORMULA

URL = reverse("training-run-presets")


def test_it_estimates_with_the_rank(client: Client, ed: User, base_model: BaseModel) -> None:
    client.force_login(ed)
    cards = {r: client.get(URL, {"base_model": base_model.pk, "r": r}).context["cards"] for r in (4, 8)}
    # o_proj of two 32-wide layers: r * 2 * (32 + 32).
    assert [cards[r][0].trainable_parameters for r in (4, 8)] == [512, 1024]
    assert cards[4][0].adapter_bytes < cards[8][0].adapter_bytes


def test_it_lists_the_presets_in_their_order(client: Client, ed: User, base_model: BaseModel) -> None:
    client.force_login(ed)
    cards = client.get(URL, {"base_model": base_model.pk}).context["cards"]
    slugs = [card.config.slug for card in cards]
    assert slugs == ["efficient", "balanced", "query_value", "attention", "mlp", "quality"]


def test_it_shows_modules_parameters_and_size(client: Client, ed: User, base_model: BaseModel) -> None:
    client.force_login(ed)
    page = " ".join(client.get(URL, {"base_model": base_model.pk, "r": 4}).content.decode().split())
    # Query and value of two layers: r * 2 * (32 + 32 + 32 + 16).
    assert "<strong>4</strong> modules in 2 of 2 layers" in page
    assert "<strong>896</strong> trainable" in page
    assert page.count("</strong> adapter") == 6


def test_it_keeps_the_choice(client: Client, ed: User, base_model: BaseModel) -> None:
    client.force_login(ed)
    mlp = TargetModuleConfig.objects.get(slug="mlp")
    page = client.get(URL, {"base_model": base_model.pk, "r": 4, "target_module_config": mlp.pk}).content
    assert page.count(b"checked") == 1
    assert f'value="{mlp.pk}" id="id_target_module_config_4" checked' in " ".join(page.decode().split())


def test_it_shows_why_a_preset_is_refused(client: Client, ed: User, base_model: BaseModel) -> None:
    census = base_model.census or {}
    census["groups"] = [group for group in census["groups"] if group["role"] != "attn_out"]
    BaseModel.objects.filter(pk=base_model.pk).update(census=census)
    client.force_login(ed)
    page = client.get(URL, {"base_model": base_model.pk})
    assert page.context["cards"][0].resolution.refusal
    assert b"has no layer that Graftworks knows as attention output" in page.content
    assert b"disabled" in page.content


def test_an_outdated_census_asks_for_an_inspection(client: Client, ed: User, base_model: BaseModel) -> None:
    BaseModel.objects.filter(pk=base_model.pk).update(census={**(base_model.census or {}), "version": 0})
    client.force_login(ed)
    assert b"Inspect it again" in client.get(URL, {"base_model": base_model.pk}).content


def test_it_accepts_incomplete_values(client: Client, ed: User, base_model: BaseModel) -> None:
    client.force_login(ed)
    for r in ("", "1e9"):
        assert client.get(URL, {"base_model": base_model.pk, "r": r}).status_code == 200
    for model in ("x", "987654"):
        assert b"Choose a base model" in client.get(URL, {"base_model": model}).content


def test_it_ignores_models_of_other_projects(client: Client, ed: User, other_project: Project) -> None:
    foreign = make_base_model(other_project, "Theirs", "example/theirs")
    client.force_login(ed)
    assert client.get(URL, {"base_model": foreign.pk}).context["cards"] == []


# What each choice needs


def filled(client: Client, ed: User, dataset: Dataset, base_model: BaseModel, **changes: Any) -> list[Any]:
    client.force_login(ed)
    return list(client.get(URL, entered(dataset, base_model, **changes)).context["cards"])


def test_each_card_shows_memory_and_time(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    few = filled(client, ed, dataset, base_model)
    many = filled(client, ed, dataset, base_model, max_steps="1000", per_device_train_batch_size="64")
    for short, long in zip(few, many, strict=True):
        assert short.forecast.seconds["expected"] < long.forecast.seconds["expected"]
        assert short.forecast.peak_memory_bytes["expected"] < long.forecast.peak_memory_bytes["expected"]
    sizes = {card.config.slug: card.forecast.peak_memory_bytes["expected"] for card in few}
    assert sizes["efficient"] < sizes["quality"]


def test_the_chosen_card_equals_the_forecast(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    page = client.get(URL, entered(dataset, base_model))
    chosen = next(one for one in page.context["cards"] if one.config == page.context["plan"].card.config)
    assert chosen.forecast == page.context["plan"].forecast.main


def test_a_card_shows_that_memory_is_too_small(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    WorkerNode.objects.create(
        name="gpu0@here", queue="gpu", host="here", pid=1, device="NVIDIA A100", memory_bytes=950_000_000
    )
    client.force_login(ed)
    wide = entered(dataset, base_model, per_device_train_batch_size="512", max_length="512")
    assert "(does not fit)" in client.get(URL, wide).content.decode()


def test_the_forecast_updates_every_card(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    page = client.get(reverse("training-run-forecast"), entered(dataset, base_model)).content.decode()
    for config in TargetModuleConfig.objects.filter(project=None):
        assert re.search(rf'id="preset-cost-{config.pk}"\s+hx-swap-oob="true"', page)
    assert len(re.findall(r"predicted: about <strong>[^<]+</strong> of memory", page)) == 6
    assert len(re.findall(r"predicted: about <strong>[^<]+</strong> in all", page)) == 6
    # The page itself has them in their cards, and once.
    page = client.get(reverse("training-run-create")).content.decode()
    assert "hx-swap-oob" not in page
    assert page.count('id="preset-cost-') == 6


def measured(run: TrainingRun, memory: int, seconds: float) -> None:
    run.end("succeeded", step=10)
    Calibration.objects.filter(run=run).delete()
    Calibration.objects.create(
        run=run, base_model=run.base_model, device="CPU", dtype="float32",
        formula=FORMULA, estimated_memory_bytes=10**9, estimated_training_seconds=10,
        memory_bytes=memory,
        training_seconds=seconds, seconds=seconds + 5,
    )  # fmt: skip


def test_a_card_shows_measured_costs_of_the_project(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    assert "Measured on" not in client.get(URL, entered(dataset, base_model)).content.decode()
    for memory, seconds in ((700_000_000, 20.0), (900_000_000, 40.0), (800_000_000, 21.0)):
        measured(make_run(project, dataset, base_model), memory, seconds)
    page = client.get(URL, entered(dataset, base_model)).content.decode()
    assert page.count("Measured on 3 runs of this project: 900.0 MB at most, 2.1 s per step.") == 1


def test_a_card_ignores_runs_of_other_projects(
    client: Client, ed: User, other_project: Project, dataset: Dataset
) -> None:
    shared = make_base_model(None)
    measured(make_run(other_project, make_dataset(other_project), shared), 700_000_000, 20.0)
    client.force_login(ed)
    assert "Measured on" not in client.get(URL, entered(dataset, shared)).content.decode()
