"""Weights at half their size: rounded as torch rounds them, and loaded by PEFT as they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.engine.conftest import Recorder
from workers.contract import half_precision
from workers.contract.specs import TrainSpec
from workers.engine.base_models.model import load_base
from workers.engine.training.train import train


def test_numbers_are_rounded_as_torch_does(tmp_path: Path) -> None:
    odd = [float("inf"), -float("inf"), -0.0, 1.00390625, 1.01171875, 3.4e38, 1e-40, -1e-45]
    values = torch.cat([torch.tensor(odd), torch.randn(57) * 10])
    whole = {
        "z.weight": values.reshape(5, 13),
        "a.one": torch.tensor(0.1),
        "count": torch.arange(3),
        "as the base": torch.randn(4).bfloat16(),
    }
    save_file(whole, tmp_path / "whole", metadata={"format": "pt"})
    half_precision.halve(tmp_path / "whole", tmp_path / "half")
    found = load_file(tmp_path / "half")
    assert set(found) == set(whole)
    for name, expected in whole.items():
        rounded = expected.bfloat16() if expected.dtype == torch.float32 else expected
        assert found[name].dtype == rounded.dtype
        assert torch.equal(found[name], rounded), name


def test_a_missing_number_stays_none(tmp_path: Path) -> None:
    # The largest bit pattern would run over into zero if it were rounded.
    bits = torch.tensor([-1, 0x7FC00000, 0x7F800001], dtype=torch.int32)
    save_file({"a": bits.view(torch.float32)}, tmp_path / "whole")
    half_precision.halve(tmp_path / "whole", tmp_path / "half")
    assert bool(load_file(tmp_path / "half")["a"].isnan().all())


def test_peft_loads_it_with_the_logits_of_the_rounded_weights(
    make_spec: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    spec = make_spec(learning_rate=5e-2)
    train([spec], tmp_path, report=Recorder())
    folder, smaller = tmp_path / "arm-0/adapter", tmp_path / "smaller"
    shutil.copytree(folder, smaller)
    weights = "adapter_model.safetensors"
    half_precision.halve(folder / weights, smaller / weights)
    assert (smaller / weights).stat().st_size < 0.8 * (folder / weights).stat().st_size
    rounded = {name: value.bfloat16().float() for name, value in load_file(folder / weights).items()}
    save_file(rounded, folder / weights, metadata={"format": "pt"})
    ids = torch.arange(3, 43).reshape(2, 20)
    logits = []
    for path in (smaller, folder):
        base = load_base(spec.base, torch.float32, torch.device("cpu"))
        with torch.no_grad():
            logits.append(PeftModel.from_pretrained(base, path).eval()(input_ids=ids).logits)
    assert torch.equal(*logits)
