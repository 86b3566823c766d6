"""Names and selected groups on hand-written censuses; tests/engine attaches real model families."""

from __future__ import annotations

import pytest

from tests.workers.target_modules.test_presets import GPT2, LAYERS, LLAMA, census, group
from workers.target_modules.census import Group
from workers.target_modules.custom import Selection, resolve_names, shortest_entry, similar_names

O_PROJ = "model.layers.*.self_attn.o_proj"


def test_shared_layers_are_named_once() -> None:
    resolution = resolve_names(["o_proj", "down_proj"], census(LLAMA), layers=(2, 3))
    assert resolution.target_modules == ("down_proj", "o_proj")
    assert resolution.layers_to_transform == (2, 3)
    assert resolution.coverage == "2 of 4 layers, 4 modules"
    assert resolution.confirmations == ()


def test_different_layers_need_a_regex() -> None:
    resolution = resolve_names(["layers.0.self_attn.o_proj", "down_proj"], census(LLAMA))
    assert resolution.target_regex == (
        r"(model\.layers\.(0)\.self_attn\.o_proj|model\.layers\.\d+\.mlp\.down_proj)"
    )
    assert resolution.modules == 5


def test_a_misspelt_name_is_reported_with_similar_names() -> None:
    resolution = resolve_names(["o_proj", "dwon_proj"], census(LLAMA))
    assert "`dwon_proj` matches no layer of this model. Near names: `down_proj`" in resolution.refusal


def test_similar_names_have_as_many_segments_as_the_entry() -> None:
    assert similar_names("mlp.c_porj", census(GPT2).groups)[0] == "mlp.c_proj"
    assert "." not in similar_names("c_porj", census(GPT2).groups)[0]


def test_rank_and_alpha_patterns_match_one_group_each() -> None:
    resolution = resolve_names(
        ["o_proj", "q_proj"], census(LLAMA), rank_pattern={"o_proj": 4}, alpha_pattern={"q_proj": 64}
    )
    arguments = resolution.arguments(16, 32)
    assert arguments.rank_pattern == {"self_attn.o_proj": 4}
    assert arguments.alpha_pattern == {"self_attn.o_proj": 8, "self_attn.q_proj": 64}
    assert resolution.params(16) == 4 * (4 * 128 + 16 * 128)


def test_a_rank_pattern_without_adapted_layer_is_refused() -> None:
    resolution = resolve_names(["o_proj"], census(LLAMA), rank_pattern={"down_proj": 4})
    assert resolution.refusal.endswith("`down_proj` matches no layer of this model. Near names: `o_proj`.")


def test_the_output_head_has_to_be_confirmed() -> None:
    assert resolve_names(["lm_head"], census(LLAMA)).confirmations == (
        "This also adapts `lm_head` (output head), as no preset does.",
    )


def test_a_name_outside_the_chosen_layers_is_refused() -> None:
    some = Group("model.layers.*.linear_attn.out_proj", "linattn_out", "decoder", "linear", (0, 1), 64, 64)
    refusal = resolve_names(["out_proj"], census(LLAMA, some), layers=(3,)).refusal
    assert refusal == "`out_proj` exists in none of the chosen layers (3)."


def test_a_layer_that_does_not_exist_is_refused() -> None:
    assert "layers 0 to 3" in resolve_names(["o_proj"], census(LLAMA), layers=(4,)).refusal


@pytest.mark.parametrize("entry", [".*o_proj", "o proj", "", "x" * 201, "(a+)+$"])
def test_regex_is_refused(entry: str) -> None:
    assert "is not a plain name" in resolve_names([entry], census(LLAMA)).refusal


def test_all_linear_is_refused_with_an_alternative() -> None:
    assert "Choose the preset Quality" in resolve_names(["all-linear"], census(LLAMA)).refusal


def test_no_name_and_too_many_are_refused() -> None:
    assert resolve_names([], census(LLAMA)).refusal == "Name at least one layer to adapt."
    assert "Too many names" in resolve_names(["o_proj"] * 101, census(LLAMA)).refusal


def test_a_convolution_is_refused() -> None:
    conv = group("conv.conv", "conv", kind="conv")
    assert "is a convolution" in resolve_names(["conv.conv"], census(LLAMA, conv)).refusal


def test_experts_of_some_layers_are_named_one_by_one() -> None:
    experts = group("mlp.experts.down_proj", "expert_down", kind="expert", scope="routed_expert", experts=8)
    resolution = resolve_names(["down_proj"], census({}, experts), layers=(1, 3))
    assert resolution.target_parameters == tuple(
        f"model.layers.{layer}.mlp.experts.down_proj" for layer in (1, 3)
    )
    assert LAYERS == (0, 1, 2, 3)


def test_a_selected_group_is_stored_by_its_shortest_unique_name() -> None:
    assert shortest_entry(O_PROJ, census(LLAMA)) == "o_proj"
    c_proj = [one.pattern for one in census(GPT2).groups if one.pattern.endswith("c_proj")]
    assert [shortest_entry(pattern, census(GPT2)) for pattern in c_proj] == ["attn.c_proj", "mlp.c_proj"]


def test_an_ambiguous_group_is_stored_by_its_pattern() -> None:
    tower = Group("vision.layers.*.self_attn.o_proj", "attn_out", "vision", "linear", LAYERS, 64, 64)
    model = census(LLAMA, tower)
    chosen = Selection.from_groups([O_PROJ], model, layers_to_transform=(3,), ranks={O_PROJ: 4})
    assert chosen.target_modules == (O_PROJ,)
    resolution = Selection.from_dict(chosen.to_dict()).resolve(model)
    assert resolution.names() == ["model.layers.3.self_attn.o_proj"]
    assert (resolution.matched[0].r, resolution.confirmations) == (4, ())


def test_a_star_stands_for_a_layer_number_only() -> None:
    for entry in ("*", "*.o_proj", "model.layers.*", "model.*.*.o_proj", "o_*"):
        assert resolve_names([entry], census(LLAMA)).refusal
