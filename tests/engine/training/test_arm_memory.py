"""The memory of an arm that shares its process: what it would need alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.conftest import Recorder
from tests.tiny_model import tiny_target
from workers.contract.events import ArmEnd
from workers.contract.specs import TrainSpec
from workers.engine import runtime
from workers.engine.training.arms import Arm
from workers.engine.training.train import train

MakeSpec = Callable[..., TrainSpec]
PEAK = 10**9


def test_peak_memory_excludes_other_arms(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "peak_memory_bytes", lambda _device=None: PEAK)
    specs = [make_spec(r=rank, target=tiny_target(rank), validation_steps=1) for rank in (2, 8)]
    record = Recorder()
    train(specs, tmp_path, report=record)
    small, large = (end.summary for end in record.of(ArmEnd))
    weights = [4 * one["trainable_parameters"] for one in (small, large)]
    # In its first turn the other one had not stepped yet, so it kept its weights alone.
    assert PEAK - small["peak_memory_bytes"] == weights[1]
    # Weights, two moments and the best weights; besides, a counter of steps for each tensor.
    assert 0 <= PEAK - large["peak_memory_bytes"] - 4 * weights[0] < 1000


def test_single_arm_reports_the_process_peak(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "peak_memory_bytes", lambda _device=None: PEAK)
    record = Recorder()
    train([make_spec()], tmp_path, report=record)
    assert record.of(ArmEnd)[0].summary["peak_memory_bytes"] == PEAK


def test_device_bytes_counts_only_that_device(make_spec: MakeSpec) -> None:
    arm = Arm(0, make_spec(), {}, [], [], 1)
    arm.best_weights = [torch.zeros(100)]
    assert arm.device_bytes(torch.device("cpu")) == 400
    assert arm.device_bytes(torch.device("cuda")) == 0
