"""The traps of each family: what a name does in silence when PEFT is given it, and what is done about it.

Each test first shows the trap on PEFT itself, then that it is avoided, corrected or has to be confirmed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer

from tests.engine.families import FAMILIES
from workers.engine.base_models import census
from workers.engine.training.lora import attach_adapter
from workers.target_modules.census import Census
from workers.target_modules.custom import resolve_names
from workers.target_modules.presets import PRESETS, resolve
from workers.target_modules.resolution import Resolution


def counted(family: str) -> Census:
    return census.listed(FAMILIES[family].build(family))


def on(family: str, preset: str) -> Resolution:
    return resolve(PRESETS[preset].roles, counted(family))


def peft_attaches(family: str, **arguments: Any) -> set[str]:
    """Names that PEFT adapts when it is given these arguments as they stand, layer numbers left out."""
    with torch.device("meta"):
        model = attach_adapter(FAMILIES[family].build(family), LoraConfig(r=8, **arguments))
    names = [*model.targeted_module_names, *model.targeted_parameter_names]
    return {".".join(part for part in name.split(".") if not part.isdigit()) for name in names}


def ends(resolution: Resolution) -> set[str]:
    """The last two segments of everything that is adapted."""
    return {".".join(one.pattern.split(".")[-2:]) for one in resolution.matched}


def test_gpt2_c_proj_means_attention_or_mlp_by_its_parent() -> None:
    assert len(peft_attaches("gpt2", target_modules=["c_proj"])) == 2
    assert on("gpt2", "efficient").target_modules == ("attn.c_proj",)
    assert on("gpt2", "mlp").target_modules == ("c_fc", "mlp.c_proj")
    told = resolve_names(["c_proj"], counted("gpt2")).confirmations
    assert told == ("`c_proj` matches layers of different kinds: attention output, MLP down.",)


def test_phi3_query_and_value_are_one_layer() -> None:
    with pytest.raises(ValueError, match="not found"):
        peft_attaches("phi3", target_modules=["q_proj", "v_proj"])
    resolution = on("phi3", "query_value")
    assert resolution.target_modules == ("qkv_proj",)
    assert resolution.labels == ("query, key and value (fused)",)
    refusal = resolve_names(["q_proj"], counted("phi3")).refusal
    assert "`q_proj` matches no layer" in refusal
    assert "`qkv_proj`" in refusal


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_mixtral_and_gpt_oss_down_proj_is_no_module(family: str) -> None:
    assert peft_attaches(family, target_modules=["o_proj", "down_proj"]) == {"model.layers.self_attn.o_proj"}
    assert ends(on(family, "balanced")) == {"self_attn.o_proj", "experts.down_proj"}
    corrected = resolve_names(["o_proj", "down_proj"], counted(family))
    assert corrected.target_parameters == ("mlp.experts.down_proj",)


def test_mixtral_router_is_adapted_by_nobody_by_accident() -> None:
    assert "model.layers.mlp.gate.weight" in peft_attaches("mixtral", target_modules="all-linear")
    assert "router" not in {one.role for one in on("mixtral", "quality").matched}
    assert (
        "`model.layers.*.mlp.gate.weight` (router)"
        in resolve_names(["gate"], counted("mixtral")).confirmations[0]
    )


def test_qwen3_moe_down_proj_multiplies_the_budget_by_its_experts() -> None:
    with torch.device("meta"):
        config = LoraConfig(r=8, target_modules=["down_proj"])
        model = attach_adapter(FAMILIES["qwen3_moe"].build("qwen3_moe"), config)
    full = sum(item.numel() for item in model.parameters() if item.requires_grad)
    resolution = resolve_names(["down_proj"], counted("qwen3_moe"))
    assert resolution.params(8) * 8 == full  # eight experts share r 8
    assert resolution.arguments(8, 16).rank_pattern == {"experts.down_proj": 1}


def test_qwen3_moe_expert_scale_equals_lora_alpha_by_r() -> None:
    arguments = on("qwen3_moe", "mlp").arguments(16, 32)
    with torch.device("meta"):
        config = LoraConfig(r=16, lora_alpha=32, **arguments.to_dict())
        model = attach_adapter(FAMILIES["qwen3_moe"].build("qwen3_moe"), config)
    scales = {layer.scaling["default"] for layer in model.modules() if isinstance(layer, LoraLayer)}
    assert scales == {32 / 16}


def test_qwen3_next_and_qwen3_5_have_o_proj_in_one_layer_of_four() -> None:
    assert on("qwen3_5_text", "efficient").target_modules == ("o_proj", "out_proj")
    assert len(on("qwen3_next", "efficient").layers) == 4
    told = resolve_names(["o_proj"], counted("qwen3_5_text")).confirmations
    assert told == ("Attention output exists in 1 of 4 layers (3); the other layers get no adapter.",)


def test_qwen3_next_shared_expert_is_dropped_by_names_alone() -> None:
    shared = "model.layers.mlp.shared_expert.down_proj"
    assert shared not in peft_attaches("qwen3_next", target_modules=["o_proj", "down_proj"])
    assert "shared_expert.down_proj" in ends(on("qwen3_next", "balanced"))


def test_qwen3_5_gates_belong_to_no_preset() -> None:
    assert not {one.role for one in on("qwen3_5_text", "quality").matched} & {"gate_other", "conv"}


def test_deepseek_v3_query_and_key_are_compressed() -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert peft_attaches("deepseek_v3", target_modules=names) == {"model.layers.self_attn.o_proj"}
    assert on("deepseek_v3", "query_value").labels == ("query", "key and value (compressed)")
    refused = resolve_names(names, counted("deepseek_v3"))
    assert [f"`{name}` matches no layer" in refused.refusal for name in names] == [True, True, True, False]
    assert "`q_a_proj`" in refused.refusal or "`q_b_proj`" in refused.refusal


def test_deepseek_v3_dense_layers_and_shared_experts_keep_their_adapters() -> None:
    assert peft_attaches("deepseek_v3", target_modules=["shared_experts.down_proj"]) == {
        "model.layers.mlp.experts.down_proj"
    }
    meant = {"mlp.down_proj", "shared_experts.down_proj", "experts.down_proj", "self_attn.o_proj"}
    assert ends(on("deepseek_v3", "balanced")) == meant


def test_gemma3_vision_tower_shares_query_and_value() -> None:
    reached = peft_attaches("gemma3", target_modules=["q_proj", "v_proj"])
    assert any("vision_tower" in name for name in reached)
    resolution = on("gemma3", "query_value")
    assert (
        resolution.target_regex
        == r"model\.language_model\.layers\.\d+\.(self_attn\.q_proj|self_attn\.v_proj)"
    )
    assert {one.group.scope for one in resolution.matched} == {"decoder"}
    assert "(image or audio tower)" in resolve_names(["q_proj"], counted("gemma3")).confirmations[0]


def test_t5_gated_mlp_has_no_wi() -> None:
    reached = peft_attaches("mt5", target_modules=["wi", "wo"])
    assert {name.split(".")[-1] for name in reached} == {"wo"}
    assert on("mt5", "mlp").target_modules == ("wi_0", "wi_1", "wo")
    refused = resolve_names(["wi", "wo"], counted("mt5"))
    assert "`wi_0`" in refused.refusal
    assert "`wi_1`" in refused.refusal
    refused = resolve_names(["wi_0", "wo"], counted("t5"))
    assert "`wi`" in refused.refusal


def test_lfm2_out_proj_is_also_the_end_of_a_convolution() -> None:
    assert "model.layers.conv.out_proj" in peft_attaches("lfm2", target_modules=["out_proj"])
    resolution = on("lfm2", "efficient")
    assert resolution.target_modules == ("self_attn.out_proj",)
    assert resolution.confirmations == (
        "Attention output exists in 2 of 4 layers (1, 3); the other layers get no adapter.",
    )
    assert "conv.out_proj` (other)" in resolve_names(["out_proj"], counted("lfm2")).confirmations[0]


def test_qwen2_5_vl_mlp_names_are_also_the_towers() -> None:
    assert any("visual" in name for name in peft_attaches("qwen2_5_vl", target_modules=["gate_proj"]))
    assert {one.group.scope for one in on("qwen2_5_vl", "quality").matched} == {"decoder"}


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma3"])
def test_a_typo_beside_a_valid_name_is_reported_with_near_names(family: str) -> None:
    assert peft_attaches(family, target_modules=["o_proj", "typo"])  # PEFT says nothing
    refused = resolve_names(["o_proj", "typo"], counted(family))
    assert "`typo` matches no layer of this model. Near names: `" in refused.refusal
