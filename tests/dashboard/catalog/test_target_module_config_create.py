"""Creating a target-module config: selected or pasted, explained, and saved as a version."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Project, TargetModuleConfig, User
from tests.conftest import make_base_model
from workers.target_modules.custom import Selection

URL = reverse("target-module-config-create")
EXPLAIN = reverse("target-module-config-explain")
OUT, DOWN = "model.layers.*.self_attn.o_proj", "model.layers.*.mlp.down_proj"


@pytest.fixture
def editor(client: Client, ed: User) -> Client:
    client.force_login(ed)
    return client


def ticked(base_model: BaseModel, *groups: str, **changes: Any) -> dict[str, Any]:
    values = {"base_model": base_model.pk, "how": "tick", "layers": "all", "groups": groups, "name": "Ours"}
    return {**values, "action": "save", **changes}


def pasted(base_model: BaseModel, text: str, **changes: Any) -> dict[str, Any]:
    return ticked(base_model, how="paste", pasted=text, **changes)


def test_selected_layers_are_saved(editor: Client, base_model: BaseModel, ed: User) -> None:
    values = ticked(
        base_model, OUT, DOWN, layers="top_half", description="Top.", evidence="Two seeds.",
        **{f"r:{DOWN}": "4", f"lora_alpha:{DOWN}": "6"},
    )  # fmt: skip
    config = TargetModuleConfig.objects.get(name="Ours") if editor.post(URL, values) else None
    assert config is not None
    assert (config.made_by, config.description, config.evidence) == (ed, "Top.", "Two seeds.")
    assert Selection.from_dict(config.selection or {}) == Selection(
        ("o_proj", "down_proj"), "top_half", rank_pattern={"down_proj": 4}, alpha_pattern={"down_proj": 6}
    )
    resolution = config.resolve(base_model)
    assert [(one.role, one.layers, one.r) for one in resolution.matched] == [
        ("attn_out", (1,), 0),
        ("mlp_down", (1,), 4),
    ]


def test_a_form_that_starts_from_a_config_explains_it_at_once(editor: Client, base_model: BaseModel) -> None:
    preset = TargetModuleConfig.objects.get(name="Efficient", project=None)
    assert b'hx-trigger="load,' in editor.get(f"{URL}?from={preset.pk}").content
    assert b'hx-trigger="load,' not in editor.get(URL).content


def test_a_layer_range_is_saved(editor: Client, base_model: BaseModel) -> None:
    editor.post(URL, ticked(base_model, OUT, layers="range", range="0 - 0"))
    assert TargetModuleConfig.objects.get(name="Ours").resolve(base_model).layers == (0,)


@pytest.mark.parametrize("text", ["0-9", "x", "", "1-0", "9" * 300])
def test_an_invalid_layer_range_is_refused(editor: Client, base_model: BaseModel, text: str) -> None:
    page = editor.post(URL, ticked(base_model, OUT, layers="range", range=text))
    assert page.status_code == 422
    assert page.context["form"].errors["range"]


@pytest.mark.parametrize(
    "text",
    [
        "q_proj v_proj",
        "target_modules=['q_proj', 'v_proj']",
        '["q_proj", "v_proj"]',
        '{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"]}',
    ],
)
def test_pasted_names_are_explained_and_not_saved(editor: Client, base_model: BaseModel, text: str) -> None:
    page = editor.post(URL, pasted(base_model, text, action="explain", name=""))
    assert page.status_code == 200
    assert [one.role for one in page.context["explained"].matched] == ["attn_q", "attn_v"]
    assert b"2 of 2 layers" in page.content
    assert (b"<code>r 8</code>" in page.content) == ("peft_type" in text)
    assert not TargetModuleConfig.objects.exclude(project=None).exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 50_000,
        "7",
        '{"target_modules": "all-linear"}',
        '{"target_modules": [1]}',
        '{"target_modules": ["o_proj"], "layers_to_transform": [99]}',
        '{"target_modules": ["o_proj"], "rank_pattern": {"o_proj": 1e999}}',
        '{"target_modules": ["o_proj"], "description": "\\ud800"}',
        '{"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}',
        '["o_proj", "typo"]',
    ],
)
def test_invalid_pasted_text_is_refused(editor: Client, base_model: BaseModel, text: str) -> None:
    page = editor.post(URL, pasted(base_model, text))
    assert page.status_code == 422
    assert page.context["form"].errors["pasted"]


def test_an_exported_config_can_be_imported(editor: Client, base_model: BaseModel, project: Project) -> None:
    selection = Selection(("o_proj",), "top_half", rank_pattern={"o_proj": 4})
    config = TargetModuleConfig.objects.compose(
        project=project, by=None, name="Ours", selection=selection, evidence="Seen."
    )
    answer = editor.get(reverse("target-module-config-export", args=[config.pk]))
    assert answer.headers["Content-Disposition"] == 'attachment; filename="ours-v1.json"'
    file = SimpleUploadedFile("ours-v1.json", answer.content)
    editor.post(URL, ticked(base_model, how="paste", name="Copy", file=file))
    copy = TargetModuleConfig.objects.get(name="Copy")
    assert (copy.selection, copy.evidence) == (config.selection, "Seen.")


def test_a_large_file_is_refused(editor: Client, base_model: BaseModel) -> None:
    file = SimpleUploadedFile("long.json", b" " * 64_001)
    page = editor.post(URL, ticked(base_model, how="paste", file=file))
    assert b"too large" in page.content


def test_the_form_starts_from_an_earlier_config(
    editor: Client, base_model: BaseModel, project: Project
) -> None:
    selection = Selection(("down_proj",), layers_to_transform=(1,), rank_pattern={"down_proj": 4})
    config = TargetModuleConfig.objects.compose(project=project, by=None, name="Ours", selection=selection)
    page = editor.get(URL, {"from": config.pk, "base_model": base_model.pk})
    assert [(line.pattern, line.r) for line in page.context["layer_rows"] if line.is_selected] == [
        (DOWN, "4")
    ]
    assert (page.context["form"]["range"].value(), page.context["form"]["name"].value()) == ("1", "Ours")
    editor.post(URL, ticked(base_model, OUT))
    assert TargetModuleConfig.objects.get(name="Ours", version=2).selection != config.selection


def test_an_empty_or_reserved_name_is_refused(editor: Client, base_model: BaseModel) -> None:
    for name in ("", "  ", "Efficient", "QUALITY"):
        page = editor.post(URL, ticked(base_model, OUT, name=name))
        assert page.context["form"].errors["name"]


def test_an_empty_selection_is_refused(editor: Client, base_model: BaseModel) -> None:
    page = editor.post(URL, ticked(base_model, "no.such.*.group"))
    assert b"Select at least one layer group." in page.content


def test_selecting_the_head_shows_a_warning(editor: Client, base_model: BaseModel) -> None:
    region = editor.post(EXPLAIN, ticked(base_model, "lm_head"))
    assert b"as no preset does. You confirm this when you start a run." in region.content


def test_an_invalid_rank_is_refused(editor: Client, base_model: BaseModel) -> None:
    for text in ("0", "x", "513", "²"):
        page = editor.post(URL, ticked(base_model, OUT, **{f"r:{OUT}": text}))
        assert f"r of {OUT} must be a whole number from 1 to 512." in page.content.decode()


def test_models_of_other_projects_are_hidden(
    client: Client, ed: User, base_model: BaseModel, other_project: Project
) -> None:
    foreign = make_base_model(other_project, "Theirs", "example/theirs")
    client.force_login(ed)
    assert client.get(URL, {"base_model": foreign.pk}).context["base_model"] == base_model


def test_without_an_inspected_model_the_page_explains_it(editor: Client) -> None:
    assert b"No base model has been inspected yet" in editor.get(URL).content
