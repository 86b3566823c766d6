"""Training and answers on a CUDA device, as far as a machine without one can show what differs there."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import peft_model
from torch.nn.functional import scaled_dot_product_attention

from tests.engine.serving.chats import save_adapter
from tests.tiny_model import tiny_base
from workers.engine.__main__ import failure
from workers.engine.base_models.model import load_base
from workers.engine.generation.adapters import Adapters
from workers.engine.runtime import pick_device
from workers.engine.training.packed import attend_at_once, equals_row_by_row


def test_no_operation_reads_tensors_of_two_devices(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "tests.engine.training.card_steps", str(tiny_folder)]
    # Beside a real card, torch would take that one for the device of gradients.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
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


def test_adapters_are_read_to_the_device_of_their_base(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export on the CPU must take no memory of a card beside a training."""
    save_adapter(tmp_path, tiny_folder, 1)
    base = load_base(tiny_base(tiny_folder), torch.float32, torch.device("cpu"))
    monkeypatch.setattr(peft_model, "infer_device", lambda: pytest.fail("PEFT chose a device"))
    adapters = Adapters(base)
    for name in ("one", "two"):
        adapters.load(name, tmp_path)
    assert adapters.changes_outputs("two")


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    is_aligned_at_end: bool = True,
) -> torch.Tensor:
    """Compute on the CPU as `torch.nn.attention.varlen.varlen_attn` does on a GPU."""
    assert window_size == (-1, 0)
    own, read = query_bounds.diff().tolist(), key_bounds.diff().tolist()
    assert (longest_query, longest_key) == (max(own), max(read))
    parts = []
    for q, k, v in zip(query.split(own), key.split(read), value.split(read), strict=True):
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q) if is_aligned_at_end else 0)
        states = (part.transpose(0, 1)[None] for part in (q, k, v))
        attended = scaled_dot_product_attention(*states, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("key_heads", [2, 4])
def test_attention_of_all_rows_at_once_is_that_row_by_row(key_heads: int) -> None:
    inputs = [torch.randn(1, 11, heads, 8) for heads in (4, key_heads, key_heads)]
    assert equals_row_by_row(partial(attend_at_once, varlen_attention), inputs)


def test_another_attention_of_all_rows_is_not_used() -> None:
    def refuse(*_arguments: Any, **_options: Any) -> torch.Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    def lose(*arguments: Any, **options: Any) -> torch.Tensor:
        return varlen_attention(*arguments, **options) * torch.nan

    inputs = [torch.randn(1, 11, 4, 8) for _ in range(3)]
    for other in (partial(varlen_attention, is_aligned_at_end=False), refuse, lose):
        assert not equals_row_by_row(partial(attend_at_once, other), inputs)
