"""What differs on a CUDA device, as far as a machine without one can show it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workers.engine.__main__ import failure
from workers.engine.training.runtime import pick_device


def test_no_operation_reads_tensors_of_two_devices(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "tests.engine.training.card_steps", str(tiny_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_lack_of_memory_on_a_card_is_told_with_the_cards_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3 << 30)
    text = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4.00 GiB."
    found = failure(torch.OutOfMemoryError(text))
    assert found.code == "out_of_memory"
    assert "2.00 GiB" in found.message
    assert "3.0 GiB" in found.message


def test_attention_is_not_computed_by_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch.backends.cuda.cudnn_sdp_enabled()
    try:
        assert pick_device() == torch.device("cuda", 0)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
