"""Fused layers give the outputs and gradients of PEFT's and Transformers' own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import nn

from tests.tiny_model import build_tiny_model, tiny_base
from workers.engine.base_models.model import load_base
from workers.engine.training import fused, lora
from workers.engine.training.data import Batch, pad
from workers.engine.training.encoding import Example
from workers.engine.training.loss import Scorer, make_scorer

CPU = torch.device("cpu")

NAMES = {
    "llama": ["q_proj", "o_proj", "down_proj"],
    "qwen2": ["q_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "attn.c_proj"],
    "gpt_neox": ["query_key_value", "dense"],
}

REPLACED = {
    "llama": {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention", "LlamaDecoderLayer"},
    "qwen2": {"Qwen2RMSNorm", "Qwen2MLP", "Qwen2Attention", "Qwen2DecoderLayer"},
}


def attached(folder: Path, model_type: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    base = load_base(tiny_base(build_tiny_model(folder, model_type=model_type)), dtype, torch.device("cpu"))
    torch.manual_seed(3)
    model = lora.attach_adapter(
        base, LoraConfig(r=4, target_modules=NAMES[model_type], task_type="CAUSAL_LM", **options)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def result(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits, and the gradients of the adapter."""
    torch.manual_seed(5)
    logits = model(input_ids=torch.arange(3, 43).view(2, 20)).logits
    parameters = [item for item in model.parameters() if item.requires_grad]
    gradients = torch.autograd.grad(logits.float().logsumexp(-1).sum(), parameters)
    return logits, torch.cat([item.flatten() for item in gradients])


@pytest.mark.parametrize("model_type", sorted(NAMES))
def test_fused_layers_give_pefts_outputs_and_gradients(tmp_path: Path, model_type: str) -> None:
    model = attached(tmp_path / "m", model_type, lora_dropout=0.2)
    lora.set_dropout(model.modules(), True)
    expected = result(model)
    lora.set_dropout(model.modules(), False)
    fused.fuse(model)
    lora.set_dropout(model.modules(), True)
    replaced = {type(layer).__name__ for layer in model.modules() if "forward" in vars(layer)}
    assert replaced - {"Linear"} == REPLACED.get(model_type, set())
    for found, wanted in zip(result(model), expected, strict=True):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_fused_packed_rows_give_pefts_losses_and_gradients(
    tmp_path: Path, model_type: str, share_prefix: bool
) -> None:
    model = attached(tmp_path / "m", model_type)
    parameters = [item for item in model.parameters() if item.requires_grad]
    examples = [example(1, 20, [12, 13, 18]), example(2, 31, [15, 30]), example(3, 17, [14])]

    def losses_and_gradients(scorer: Scorer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        gradients = torch.autograd.grad(scorer.training_loss(batch, 6)[0], parameters)
        return scorer.token_losses(batch), torch.cat([item.flatten() for item in gradients])

    expected = losses_and_gradients(Scorer(model), pad(examples, CPU))
    fused.fuse(model)
    scorer = make_scorer(model, model.get_base_model(), examples, CPU)
    batch = scorer.collate(examples, CPU, share_prefix=share_prefix)
    assert batch.input_ids.shape[1] == (44 if share_prefix else 62)
    for found, wanted in zip(losses_and_gradients(scorer, batch), expected, strict=True):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


def example(row: int, length: int, targets: list[int]) -> Example:
    """A row that begins as all others do and has targets at these places."""
    ids = np.arange(3, 3 + length, dtype=np.int32)
    ids[9:] += row
    learn = np.zeros(length, dtype=np.bool_)
    learn[targets] = True
    return Example(row, ids, learn)


def test_fused_layers_in_bfloat16_are_as_near_to_fp32_as_pefts(tmp_path: Path) -> None:
    exact = result(attached(tmp_path / "exact", "llama"))
    model = attached(tmp_path / "half", "llama", torch.bfloat16)
    pefts = result(model)
    fused.fuse(model)
    for found, own, wanted in zip(result(model), pefts, exact, strict=True):
        assert found.dtype == own.dtype
        assert (found - wanted).norm() < 1.25 * (own - wanted).norm()


def test_dora_and_disabled_adapters_are_left_to_peft(tmp_path: Path) -> None:
    model = attached(tmp_path / "m", "llama", use_dora=True)
    expected = result(model)[0]
    fused.fuse(model)
    assert torch.allclose(result(model)[0], expected, atol=1e-5)
    with model.disable_adapter():
        ids = torch.arange(3, 23)[None]
        base = model.base_model.model
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_a_norm_of_another_family_stays_as_it_is() -> None:
    class OtherRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.full((8,), 0.5)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
            return (1 + self.weight) * x * scale

    model = nn.Sequential(OtherRMSNorm())
    fused.fuse(model)
    assert "forward" not in vars(model[0])
