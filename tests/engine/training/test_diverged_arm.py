"""An arm whose numbers run away beside arms that learn: it fails alone, and changes nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import Recorder
from workers.contract import hyperparameters
from workers.contract.events import ArmEnd
from workers.contract.specs import TrainSpec
from workers.engine.training.train import train

SERIES = ("train/loss", "train/grad_norm", "validation/loss")


def weights(folder: Path, arm: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"arm-{arm}/adapter/adapter_model.safetensors")


def test_diverged_arm_fails_alone(
    make_spec: Callable[..., TrainSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rate that no form takes: after one step its weights are so large that the next loss is no number.
    monkeypatch.setitem(hyperparameters.LIMITS, "learning_rate", (0.0, 1e38))
    first = make_spec(name="first", seed=1)
    last = make_spec(name="last", seed=1, r=2, lora_alpha=8, lora_dropout=0.1)
    wild = make_spec(name="wild", seed=1, learning_rate=1e37, lr_scheduler_type="constant", warmup_ratio=0.0)
    alone, beside = Recorder(), Recorder()
    train([first, last], tmp_path / "alone", report=alone)
    ends = train([first, wild, last], tmp_path / "beside", report=beside)

    assert [end.outcome for end in ends] == ["succeeded", "failed", "succeeded"]
    assert (ends[0].step, ends[2].step) == (6, 6)
    (failed,) = (end for end in beside.of(ArmEnd) if end.outcome == "failed")
    assert failed.code == "diverged"
    assert f"not finite in step {ends[1].step} of 6" in failed.message
    assert "Use a lower `learning_rate` than 1e+37" in failed.message
    assert not (tmp_path / "beside/arm-1").exists()
    for name in SERIES:
        assert beside.series(name, 0) == alone.series(name, 0)
        assert beside.series(name, 2) == alone.series(name, 1)
    for there, here in ((0, 0), (2, 1)):
        found, expected = weights(tmp_path / "beside", there), weights(tmp_path / "alone", here)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
