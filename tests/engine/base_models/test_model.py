"""Loading a base: what ends an answer, and that long batches can be interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_model import tiny_base
from workers.contract.errors import Stopped
from workers.engine.base_models.model import add_stop_hooks, end_ids, load_base, load_tokenizer
from workers.engine.runtime import pick_dtype, stop_if_asked

CPU = torch.device("cpu")
IDS = torch.arange(10, 20)[None]


def test_stop_within_forward_and_backward(tiny_folder: Path) -> None:
    model = load_base(tiny_base(tiny_folder), torch.float32, CPU)
    model.get_input_embeddings().weight.requires_grad_(True)
    asked = [""]
    add_stop_hooks(model, lambda: stop_if_asked(lambda: asked[0]))
    loss = model(input_ids=IDS).logits.sum()
    asked[0] = "cancel"
    with pytest.raises(Stopped):
        loss.backward()
    with pytest.raises(Stopped):
        model(input_ids=IDS)


def test_base_is_frozen_in_evaluation_mode(tiny_folder: Path) -> None:
    model = load_base(tiny_base(tiny_folder), torch.bfloat16, CPU)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_an_answer_ends_at_any_declared_end_token(tiny_folder: Path) -> None:
    base = tiny_base(tiny_folder)
    model = load_base(base, torch.float32, CPU)
    model.generation_config.eos_token_id = [0, 2]
    assert end_ids(model, load_tokenizer(base)) == [0, 2]


def test_a_named_number_format_is_obeyed_and_auto_picks_one() -> None:
    assert pick_dtype("bfloat16", CPU) is torch.bfloat16
    assert pick_dtype("float32", CPU) is torch.float32
    assert pick_dtype("auto", CPU) in (torch.bfloat16, torch.float32)
