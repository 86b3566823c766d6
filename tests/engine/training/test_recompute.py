"""Layers computed again in the backward pass: the same run with less memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import Recorder
from tests.engine.training.test_train import everything
from workers.contract.specs import TrainSpec
from workers.engine.base_models.model import load_base
from workers.engine.training import lora
from workers.engine.training.train import train

MakeSpec = Callable[..., TrainSpec]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradient_checkpointing_gives_the_same_run(
    make_spec: MakeSpec, tmp_path: Path, dropout: float
) -> None:
    losses, weights = [], []
    for again in (False, True):
        seen = Recorder()
        spec = make_spec(gradient_checkpointing=again, lora_dropout=dropout, target=everything(4))
        train([spec], tmp_path / str(again), report=seen)
        losses.append([seen.series("train/loss"), seen.series("validation/loss")])
        weights.append(load_file(tmp_path / str(again) / "arm-0/adapter/adapter_model.safetensors"))
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)
    assert losses[0][1] == pytest.approx(losses[1][1], abs=1e-5)
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5), name


def kept_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model.model.base_model(input_ids=ids, use_cache=False)
    return sum(seen.values())


def test_only_layer_inputs_are_kept(make_spec: MakeSpec) -> None:
    spec = make_spec(target=everything(4))
    model = lora.attach(load_base(spec.base, torch.float32, torch.device("cpu")), [spec])
    ids = torch.zeros((2, 30), dtype=torch.long)
    whole = kept_bytes(model, ids)
    lora.set_recompute(model.modules(), True)
    assert kept_bytes(model, ids) < whole / 5
    lora.set_recompute(model.modules(), False)
    assert kept_bytes(model, ids) == whole


def test_submodules_stay_in_evaluation_mode(make_spec: MakeSpec) -> None:
    spec = make_spec(target=everything(4))
    model = lora.attach(load_base(spec.base, torch.float32, torch.device("cpu")), [spec])
    lora.set_recompute(model.modules(), True)
    training = {type(module).__name__ for module in model.modules() if module.training}
    assert training == {"LlamaDecoderLayer"}
