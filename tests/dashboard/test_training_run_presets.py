"""The preset cards: reckoned on the chosen model and rank, keeping the choice."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Project, TargetModuleConfig, User
from tests.conftest import make_base_model

URL = reverse("training-run-presets")


def test_it_reckons_with_the_rank(client: Client, ed: User, base_model: BaseModel) -> None:
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


def test_it_says_what_each_choice_matches_and_costs(client: Client, ed: User, base_model: BaseModel) -> None:
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


def test_it_shows_why_a_preset_does_not_fit(client: Client, ed: User, base_model: BaseModel) -> None:
    census = base_model.census or {}
    census["groups"] = [group for group in census["groups"] if group["role"] != "attn_out"]
    BaseModel.objects.filter(pk=base_model.pk).update(census=census)
    client.force_login(ed)
    page = client.get(URL, {"base_model": base_model.pk})
    assert page.context["cards"][0].resolution.refusal
    assert b"has no layer that Graftworks knows as attention output" in page.content
    assert b"disabled" in page.content


def test_it_asks_to_inspect_a_model_counted_by_another_version(
    client: Client, ed: User, base_model: BaseModel
) -> None:
    BaseModel.objects.filter(pk=base_model.pk).update(census={**(base_model.census or {}), "version": 0})
    client.force_login(ed)
    assert b"Inspect it again" in client.get(URL, {"base_model": base_model.pk}).content


def test_it_survives_any_rank_and_model(client: Client, ed: User, base_model: BaseModel) -> None:
    client.force_login(ed)
    for r in ("0", "x", "", "1e9", "99999999999999999999"):
        assert client.get(URL, {"base_model": base_model.pk, "r": r}).status_code == 200
    for model in ("x", "", "987654"):
        assert b"Choose a base model" in client.get(URL, {"base_model": model}).content


def test_it_counts_no_foreign_model(client: Client, ed: User, other_project: Project) -> None:
    foreign = make_base_model(other_project, "Theirs", "example/theirs")
    client.force_login(ed)
    assert client.get(URL, {"base_model": foreign.pk}).context["cards"] == []
