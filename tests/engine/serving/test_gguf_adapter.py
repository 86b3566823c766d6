"""The GGUF file of an adapter changes the base model's weights exactly as PEFT does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tiny_model import build_tiny_model
from workers.contract.errors import ModelError
from workers.contract.half_precision import halve
from workers.serving.gguf_adapter import refusal, write_gguf_adapter

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HEADS = {"attn_q": 4, "attn_k": 2}
SIZES = {"qwen3": {"head_dim": 8}}


def make_adapter(
    tmp_path: Path, model_type: str = "llama", **options: Any
) -> tuple[Any, Path, dict[str, Any]]:
    """Return a model with a random adapter, the saved folder, and the base model's config.json."""
    folder = build_tiny_model(tmp_path / "base", model_type=model_type, **SIZES.get(model_type, {}))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": MODULES} | options
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter", json.loads((folder / "config.json").read_text())


def changes(gguf: Path) -> dict[str, np.ndarray]:
    """Return by name of the weight what llama.cpp adds to it: alpha / r * B A."""
    reader = GGUFReader(gguf)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    halves = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    names = {name.removesuffix(".lora_a") for name in halves if name.endswith(".lora_a")}
    return {
        name: alpha / len(halves[f"{name}.lora_a"]) * halves[f"{name}.lora_b"] @ halves[f"{name}.lora_a"]
        for name in names
    }


def transformers_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's order row by row: the pair (2i, 2i + 1) of a head holds its dimensions i and i + d/2."""
    size = len(rows) // heads
    positions = [
        head * size + (2 * i if i < size // 2 else 2 * (i - size // 2) + 1)
        for head in range(heads)
        for i in range(size)
    ]
    return rows[positions]


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {}),
        (
            "llama",
            {"use_rslora": True, "r": 8, "alpha_pattern": {"o_proj": 3}, "rank_pattern": {"up_proj": 2}},
        ),
        ("mistral", {"target_modules": ["q_proj", "k_proj"]}),
        ("qwen2", {"layers_to_transform": [1]}),
        ("qwen3", {}),
    ],
)
def test_it_changes_the_weights_as_peft_does(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    model, folder, config = make_adapter(tmp_path, model_type, **options)
    write_gguf_adapter(folder, config, tmp_path / "adapter.gguf")
    found = changes(tmp_path / "adapter.gguf")
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len(found) == len(adapted) > 0
    roles = dict(
        zip(
            MODULES,
            ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"],
            strict=True,
        )
    )
    for name, module in adapted.items():
        *_start, layer, _block, last = name.split(".")
        role = roles[last]
        change = found[f"blk.{layer}.{role}.weight"]
        if role in HEADS and model_type in ("llama", "mistral"):
            change = transformers_order(change, HEADS[role])
        expected = module.get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(change, expected, rtol=1e-5, atol=1e-6)


def test_it_says_what_llama_cpp_must_know(tmp_path: Path) -> None:
    _model, folder, config = make_adapter(tmp_path, "mistral")
    write_gguf_adapter(folder, config, tmp_path / "adapter.gguf")
    fields = GGUFReader(tmp_path / "adapter.gguf").fields
    names = ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha")
    assert [fields[name].contents() for name in names] == ["llama", "adapter", "lora", 8.0]


def test_bfloat16_weights_are_read(tmp_path: Path) -> None:
    _model, folder, config = make_adapter(tmp_path, target_modules=["v_proj"])
    write_gguf_adapter(folder, config, tmp_path / "whole.gguf")
    shutil.move(folder / "adapter_model.safetensors", tmp_path / "whole.safetensors")
    halve(tmp_path / "whole.safetensors", folder / "adapter_model.safetensors")
    write_gguf_adapter(folder, config, tmp_path / "half.gguf")
    whole, half = changes(tmp_path / "whole.gguf"), changes(tmp_path / "half.gguf")
    for name, change in whole.items():
        np.testing.assert_allclose(half[name], change, rtol=0.05, atol=0.05)
        assert not np.array_equal(half[name], change)


def test_other_tensors_and_model_types_are_refused(tmp_path: Path) -> None:
    _model, folder, config = make_adapter(tmp_path, target_modules=["o_proj"])
    weights = folder / "adapter_model.safetensors"
    assert refusal(weights, "llama") == ""
    assert "Llama, Mistral and Qwen" in refusal(weights, "gpt2")
    tensors = load_file(weights)
    tensors["base_model.model.lm_head.lora_A.weight"] = np.ones((4, 32), np.float32)
    save_file(tensors, weights)
    assert "lm_head" in refusal(weights, "llama")
    with pytest.raises(ModelError, match="lm_head"):
        write_gguf_adapter(folder, config, tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()
