"""PEFT arguments of presets on hand-written censuses; tests/engine attaches real model families."""

from __future__ import annotations

import dataclasses
import json

import pytest

from workers.contract.errors import SpecError, TargetError
from workers.contract.hyperparameters import Hyperparameters
from workers.target_modules.census import Census, Group
from workers.target_modules.peft_rules import matched_names, matches
from workers.target_modules.presets import PRESETS, preset, resolve
from workers.target_modules.resolution import Resolution, target_spec

LAYERS = tuple(range(4))
LLAMA = {
    "self_attn.q_proj": ("attn_q", 64, 64),
    "self_attn.k_proj": ("attn_k", 64, 32),
    "self_attn.v_proj": ("attn_v", 64, 32),
    "self_attn.o_proj": ("attn_out", 64, 64),
    "mlp.gate_proj": ("mlp_gate", 64, 160),
    "mlp.up_proj": ("mlp_up", 64, 160),
    "mlp.down_proj": ("mlp_down", 160, 64),
}
GPT2 = {
    "attn.c_attn": ("attn_qkv", 64, 192),
    "attn.c_proj": ("attn_out", 64, 64),
    "mlp.c_fc": ("mlp_up", 64, 256),
    "mlp.c_proj": ("mlp_down", 256, 64),
}


def group(name: str, role: str, d_in: int = 64, d_out: int = 64, **other: object) -> Group:
    values = {"scope": "decoder", "kind": "linear", "layers": LAYERS, **other}
    return Group(pattern=f"model.layers.*.{name}", role=role, d_in=d_in, d_out=d_out, **values)  # type: ignore[arg-type]


def census(names: dict[str, tuple[str, int, int]], *more: Group) -> Census:
    head = Group("lm_head", "head", "other", "linear", (), 64, 512)
    groups = tuple(group(name, role, d_in, d_out) for name, (role, d_in, d_out) in names.items())
    return Census(
        model_type="llama",
        parameters=1_000_000,
        hidden_size=64,
        num_layers=4,
        max_positions=256,
        vocab_size=512,
        groups=(*groups, *more, head),
    )


def on_llama(slug: str) -> Resolution:
    return resolve(PRESETS[slug].roles, census(LLAMA))


def test_order_of_presets() -> None:
    assert list(PRESETS) == ["efficient", "balanced", "query_value", "attention", "mlp", "quality"]


def test_efficient_adapts_attention_output_alone() -> None:
    resolution = on_llama("efficient")
    assert resolution.target_modules == ("o_proj",)
    assert resolution.coverage == "4 of 4 layers, 4 modules"
    assert resolution.params(1) == 4 * (64 + 64)


def test_quality_adapts_every_layer_but_the_head() -> None:
    resolution = on_llama("quality")
    assert resolution.target_modules == tuple(sorted(name.split(".")[1] for name in LLAMA))
    assert resolution.modules == 28


def test_ambiguous_suffix_gets_its_parent() -> None:
    assert resolve(PRESETS["efficient"].roles, census(GPT2)).target_modules == ("attn.c_proj",)
    assert resolve(PRESETS["mlp"].roles, census(GPT2)).target_modules == ("c_fc", "mlp.c_proj")


def test_prefix_of_another_name_gets_its_parent() -> None:
    names = {"attention.dense": ("attn_out", 64, 64), "mlp.dense_4h_to_h": ("mlp_down", 256, 64)}
    assert resolve(["attn_out"], census(names)).target_modules == ("attention.dense",)


def test_fused_layer_counts_as_query_and_value() -> None:
    resolution = resolve(PRESETS["query_value"].roles, census(GPT2))
    assert resolution.target_modules == ("c_attn",)
    assert resolution.labels == ("query, key and value (fused)",)
    assert "query, key and value (fused)" in resolution.notes[0]


def test_an_mlp_without_gate_is_complete() -> None:
    assert not resolve(PRESETS["mlp"].roles, census(GPT2)).refusal


def test_a_missing_role_is_refused_with_a_preset_that_works() -> None:
    names = {name: value for name, value in LLAMA.items() if not name.startswith("mlp")}
    refusal = resolve(PRESETS["balanced"].roles, census(names)).refusal
    assert "MLP down" in refusal
    assert "Choose Efficient instead" in refusal


def test_missing_layers_are_confirmed_in_one_warning() -> None:
    names = ("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v")
    some = [dataclasses.replace(group(f"self_attn.{name}", role), layers=(0, 1, 3)) for name, role in names]
    resolution = resolve(["attn_q", "attn_k", "attn_v"], census({}, *some))
    assert resolution.coverage == "3 of 4 layers, 9 modules"
    assert resolution.confirmations == (
        "Query, key and value exist in 3 of 4 layers (0-1, 3); the other layers get no adapter.",
    )


def test_experts_are_adapted_as_tensors_and_share_the_rank() -> None:
    experts = group("mlp.experts.down_proj", "expert_down", kind="expert", scope="routed_expert", experts=8)
    attention = {"self_attn.o_proj": LLAMA["self_attn.o_proj"]}
    resolution = resolve(PRESETS["balanced"].roles, census(attention, experts))
    arguments = resolution.arguments(16, 32)
    assert arguments.target_parameters == ("mlp.experts.down_proj",)
    assert arguments.rank_pattern == {"experts.down_proj": 2}
    assert arguments.alpha_pattern == {"experts.down_proj": 4}
    assert resolution.expert_shares(16) == ("8 experts share r 16: each gets r 2 and lora_alpha 4.",)
    assert resolution.params(16) == 16 * 4 * 128 + 2 * 8 * 4 * 128
    assert resolve(PRESETS["efficient"].roles, census(attention, experts)).target_parameters == ()


def test_more_experts_than_rank_get_rank_1() -> None:
    experts = group("mlp.experts.down_proj", "expert_down", kind="expert", scope="routed_expert", experts=64)
    resolution = resolve(["mlp_down"], census({}, experts))
    assert resolution.arguments(16, 32).alpha_pattern == {"experts.down_proj": 2}
    assert resolution.params(16) == 64 * 4 * 128


def test_names_that_peft_rewrites_are_given_as_tensors() -> None:
    names = {"mlp.down_proj": ("mlp_down", 64, 64), "self_attn.o_proj": ("attn_out", 64, 64)}
    counted = dataclasses.replace(census(names), rewrites={"down_proj": "down_proj", "gate": "gate.weight"})
    resolution = resolve(PRESETS["balanced"].roles, counted)
    assert resolution.target_modules == ("o_proj",)
    assert resolution.target_parameters == ("mlp.down_proj.weight",)


def test_regex_excludes_a_vision_tower() -> None:
    tower = Group("vision.layers.*.self_attn.q_proj", "attn_q", "vision", "linear", LAYERS, 64, 64)
    counted = census(LLAMA, tower)
    resolution = resolve(["attn_q", "attn_v"], counted)
    assert resolution.target_regex == r"model\.layers\.\d+\.(self_attn\.q_proj|self_attn\.v_proj)"
    reached = matched_names(resolution.arguments(8, 16), counted, 8)
    assert len(reached) == 8
    assert not [name for name in reached if name.startswith("vision")]


def test_vision_tower_is_excluded_by_name_without_regex() -> None:
    tower = Group("vision.layers.*.self_attn.q_proj", "attn_q", "vision", "linear", (0, 1), 64, 64)
    counted = dataclasses.replace(census(LLAMA, tower), rewrites={"gate": "gate.weight"})
    resolution = resolve(["attn_q"], counted)
    assert resolution.target_modules == ("q_proj",)
    assert resolution.exclude_modules == tuple(f"vision.layers.{layer}.self_attn.q_proj" for layer in (0, 1))


def test_arguments_refused_by_the_census_stay_refused() -> None:
    counted = dataclasses.replace(census(LLAMA), refused={"o_proj": "PEFT attaches to 2 layers."})
    assert resolve(["attn_out"], counted).refusal.startswith("PEFT attaches to 2 layers.")


@pytest.mark.parametrize("roles", [(), ("attn_out", "typo")])
def test_no_role_and_an_unknown_role_are_refused(roles: tuple[str, ...]) -> None:
    assert resolve(roles, census(LLAMA)).refusal


def test_presets_match_only_their_layers() -> None:
    for counted in (census(LLAMA), census(GPT2)):
        for item in PRESETS.values():
            resolution = resolve(item.roles, counted)
            touched = {
                other.pattern
                for other in counted.groups
                for entry in resolution.target_modules
                if matches(entry, other.pattern)
            }
            assert touched == {one.pattern for one in resolution.matched}


def test_matching_follows_whole_names_only() -> None:
    assert matches("o_proj", "model.layers.0.self_attn.o_proj")
    assert matches("lm_head", "lm_head")
    assert not matches("proj", "model.layers.0.self_attn.o_proj")


def test_target_spec_holds_expected_counts() -> None:
    spec = target_spec(on_llama("efficient"), Hyperparameters(r=8))
    assert spec.target_modules == ("o_proj",)
    assert (spec.modules, spec.trainable_parameters) == (4, 8 * 4 * 128)


def test_a_refused_resolution_makes_no_target_spec() -> None:
    with pytest.raises(TargetError, match="mixture"):
        target_spec(Resolution(refusal="A mixture of experts."), Hyperparameters(r=8))


def test_coverage_size_and_share_are_one_line() -> None:
    words = on_llama("efficient").summary(r=8, frozen=1_000_000, file_bytes=1_100_000)
    assert words == "4 of 4 layers, 4,096 parameters (0.41 %), 1.1 MB"


def test_a_census_survives_json() -> None:
    counted = census(LLAMA)
    assert Census.from_dict(json.loads(json.dumps(counted.to_dict()))) == counted


def test_a_census_of_another_version_asks_for_a_new_inspection() -> None:
    with pytest.raises(TargetError, match="Inspect it again"):
        Census.from_dict({**census(LLAMA).to_dict(), "version": 0})


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match="efficient, balanced"):
        preset("best")
