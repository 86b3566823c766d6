"""Presets of every family attached by PEFT on the meta device; file sizes against files that PEFT saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workers.engine import census
from workers.errors import ModelError
from workers.forecast import adapter_bytes, adapter_params
from workers.presets import PRESETS, Census, matches, resolve

USUAL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WITHOUT_KV = {name: value for name, value in USUAL.items() if name != "num_key_value_heads"}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
HYBRID = {**USUAL, "num_hidden_layers": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": USUAL,
    "qwen2": USUAL,
    "qwen3": USUAL,
    "gemma2": USUAL,
    "phi3": USUAL,
    "starcoder2": USUAL,
    "glm4": USUAL,
    "phi": WITHOUT_KV,
    "gpt_neox": WITHOUT_KV,
    "falcon": WITHOUT_KV,
    "opt": {**WITHOUT_KV, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt_neo": {**NEO, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2},
}
# (Efficient, Balanced, MLP) as PEFT must be told on each family.
EXPECTED = {
    "llama": ("o_proj", "down_proj o_proj", "down_proj gate_proj up_proj"),
    "qwen2": ("o_proj", "down_proj o_proj", "down_proj gate_proj up_proj"),
    "qwen3": ("o_proj", "down_proj o_proj", "down_proj gate_proj up_proj"),
    "gemma2": ("o_proj", "down_proj o_proj", "down_proj gate_proj up_proj"),
    "phi3": ("o_proj", "down_proj o_proj", "down_proj gate_up_proj"),
    "starcoder2": ("o_proj", "c_proj o_proj", "c_fc c_proj"),
    "glm4": ("o_proj", "down_proj o_proj", "down_proj gate_up_proj"),
    "phi": ("dense", "dense fc2", "fc1 fc2"),
    "gpt_neox": ("attention.dense", "attention.dense dense_4h_to_h", "dense_4h_to_h dense_h_to_4h"),
    "falcon": (
        "self_attention.dense",
        "dense_4h_to_h self_attention.dense",
        "dense_4h_to_h dense_h_to_4h",
    ),
    "opt": ("out_proj", "fc2 out_proj", "fc1 fc2"),
    "gpt2": ("attn.c_proj", "attn.c_proj mlp.c_proj", "c_fc mlp.c_proj"),
    "gptj": ("out_proj", "fc_out out_proj", "fc_in fc_out"),
    "gpt_neo": ("out_proj", "c_proj out_proj", "c_fc c_proj"),
}


def counted(model_type: str, **sizes: Any) -> Census:
    return census.count(AutoConfig.for_model(model_type, **sizes), has_chat_template=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_preset_attaches_exactly_on(family: str) -> None:
    result = counted(family, **FAMILIES[family])
    assert result.refused == {}
    resolved = {slug: resolve(preset.roles, result) for slug, preset in PRESETS.items()}
    assert not [slug for slug, one in resolved.items() if one.refusal]
    shown = tuple(" ".join(resolved[slug].target_modules) for slug in ("efficient", "balanced", "mlp"))
    assert shown == EXPECTED[family]
    assert resolved["quality"].layers_matched == result.num_layers


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_the_python_matcher_equals_peft(family: str) -> None:
    config = AutoConfig.for_model(family, **FAMILIES[family])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = [name for name, _ in model.named_modules()]
    for entries in (["c_proj"], ["attn.c_proj"], ["proj"], ["o_proj", "typo"], ["mlp.down_proj"]):
        promised = {name for name in names for entry in entries if matches(entry, name)}
        attached = set()
        if promised:
            lora = peft.LoraConfig(target_modules=entries, task_type="CAUSAL_LM")
            with torch.device("meta"):
                fresh = AutoModelForCausalLM.from_config(config)
            attached = set(peft.get_peft_model(fresh, lora).targeted_module_names)
        assert attached == promised


def test_parameters_count_tied_weights_once() -> None:
    tied, untied = (counted("llama", **USUAL, tie_word_embeddings=value) for value in (True, False))
    assert untied.parameters - tied.parameters == 64 * 32
    assert tied.tied_embeddings


def test_the_head_and_embeddings_belong_to_no_preset() -> None:
    result = counted("opt", **FAMILIES["opt"])
    outside = {group.pattern for group in result.groups if group.role in ("head", "embedding", "other")}
    assert {"lm_head", "model.decoder.project_in", "model.decoder.embed_tokens"} <= outside
    quality = resolve(PRESETS["quality"].roles, result)
    assert not outside & {group.pattern for group in quality.matched}


def test_the_output_of_lfm2s_convolution_is_left_alone() -> None:
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    result = counted("lfm2", **HYBRID, layer_types=kinds)
    efficient = resolve(PRESETS["efficient"].roles, result)
    assert efficient.target_modules == ("self_attn.out_proj",)
    assert efficient.notes == ("Attention output exists in 2 of 4 layers.",)


def test_linear_attention_is_part_of_efficient_and_its_gates_are_not() -> None:
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    result = counted("qwen3_5_text", **HYBRID, layer_types=kinds)
    assert resolve(PRESETS["efficient"].roles, result).target_modules == ("o_proj", "out_proj")
    quality = resolve(PRESETS["quality"].roles, result)
    assert not {"in_proj_a", "in_proj_b", "conv1d"} & set(quality.target_modules)


def test_the_mlp_of_a_mixture_of_experts_is_refused() -> None:
    result = counted("mixtral", **USUAL, num_local_experts=4)
    assert resolve(PRESETS["efficient"].roles, result).target_modules == ("o_proj",)
    assert "experts" in resolve(PRESETS["balanced"].roles, result).refusal


def test_what_peft_rewrites_in_silence_is_refused() -> None:
    # All layers dense, so nothing in the names says that PEFT will turn `down_proj` into expert parameters.
    result = counted("deepseek_v3", **USUAL)
    assert (
        "PEFT attaches to 3 layers here where 6 were meant"
        in resolve(PRESETS["balanced"].roles, result).refusal
    )


def test_a_preset_that_spills_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.presets._entry", lambda group, groups: group.pattern.rsplit(".", 1)[-1])
    result = counted("gpt2", **GPT)
    assert "PEFT attaches to 6 layers here where 3 were meant." in result.refused.values()


def test_a_model_that_is_no_language_model_is_refused() -> None:
    config = AutoConfig.for_model("vit", hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(ModelError, match="causal language model"):
        census.count(config, has_chat_template=False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("slug", PRESETS)
def test_the_forecast_equals_the_saved_file(family: str, slug: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(family, **FAMILIES[family])
    resolution = resolve(PRESETS[slug].roles, census.count(config, has_chat_template=False))
    lora = peft.LoraConfig(r=4, target_modules=list(resolution.target_modules), task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_config(config), lora)
    model.save_pretrained(tmp_path)
    trainable = sum(item.numel() for item in model.parameters() if item.requires_grad)
    assert adapter_params(resolution.matched, 4) == trainable
    assert adapter_bytes(resolution.matched, 4) == (tmp_path / "adapter_model.safetensors").stat().st_size
