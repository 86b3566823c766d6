"""The census of a model, its refusals, and file sizes against files that PEFT saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests.engine.families import FAMILIES, USUAL
from workers.contract.errors import ModelError
from workers.engine.base_models import census
from workers.engine.base_models.model import build
from workers.forecasting.adapter_size import adapter_bytes, adapter_params
from workers.target_modules.census import Census
from workers.target_modules.presets import PRESETS, resolve


def counted(model_type: str, **sizes: Any) -> Census:
    return census.count(AutoConfig.for_model(model_type, **sizes), has_chat_template=False)


def test_no_preset_is_refused_where_peft_does_what_was_meant() -> None:
    result = counted("qwen3_moe", **FAMILIES["qwen3_moe"].sizes)
    assert result.refused == {}
    assert not [slug for slug, preset in PRESETS.items() if resolve(preset.roles, result).refusal]


def test_parameters_count_tied_weights_once() -> None:
    tied, untied = (counted("llama", **USUAL, tie_word_embeddings=value) for value in (True, False))
    assert untied.parameters - tied.parameters == 64 * 32
    assert tied.tied_embeddings


def test_the_head_and_embeddings_belong_to_no_preset() -> None:
    result = counted("opt", **FAMILIES["opt"].sizes)
    outside = {group.pattern for group in result.groups if group.role in ("head", "embedding", "other")}
    assert {"lm_head", "model.decoder.project_in", "model.decoder.embed_tokens"} <= outside
    quality = resolve(PRESETS["quality"].roles, result)
    assert not outside & {group.pattern for group in quality.matched}


def test_arguments_that_spill_are_seen() -> None:
    config = AutoConfig.for_model("gpt2", **FAMILIES["gpt2"].sizes)
    right = resolve(PRESETS["efficient"].roles, census.listed(build(config)))
    assert census.attach_problem(build(config), right) == ""
    wrong = dataclasses.replace(right, target_modules=("c_proj",))
    problem = census.attach_problem(build(config), wrong)
    assert problem == "PEFT attaches to 6 layers here where 3 were meant."


def test_a_rank_that_peft_reads_otherwise_is_seen() -> None:
    config = AutoConfig.for_model("mixtral", **FAMILIES["mixtral"].sizes)
    right = resolve(PRESETS["mlp"].roles, census.listed(build(config)))
    wrong = dataclasses.replace(
        right, matched=tuple(dataclasses.replace(one, r=3) for one in right.matched[:1])
    )
    assert "were meant" in census.attach_problem(build(config), wrong)


def test_a_model_that_is_no_language_model_is_refused() -> None:
    config = AutoConfig.for_model("vit", hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    with pytest.raises(ModelError, match="causal language model"):
        census.count(config, has_chat_template=False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_next"])
@pytest.mark.parametrize("slug", PRESETS)
def test_the_forecast_equals_the_saved_file(family: str, slug: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(family, **FAMILIES[family].sizes)
    resolution = resolve(PRESETS[slug].roles, census.listed(build(config)))
    lora = peft.LoraConfig(r=4, **resolution.arguments(4, 4).to_dict(), task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_config(config), lora)
    model.save_pretrained(tmp_path)
    trainable = sum(item.numel() for item in model.parameters() if item.requires_grad)
    assert adapter_params(resolution.matched, 4) == trainable
    assert adapter_bytes(resolution.matched, 4) == (tmp_path / "adapter_model.safetensors").stat().st_size
