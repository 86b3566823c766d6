"""Greedy answers in batches equal those of each prompt alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_model import build_tiny_model, tiny_base
from workers.contract.errors import Stopped
from workers.contract.events import never_stop
from workers.contract.specs import PREFIX_TYPES
from workers.engine.base_models.model import load_base
from workers.engine.evaluation.generate import generate_greedily

CPU = torch.device("cpu")
START = list(range(20, 40))
PROMPTS = [np.array(START + rest, dtype=np.int32) for rest in ([5], [7, 8, 9, 10, 11], [9, 9], [5, 6, 7])]


def answer(model: Any, prompts: list[Any], **changes: Any) -> list[list[int]]:
    keywords: dict[str, Any] = {
        "max_new_tokens": 6,
        "end_ids": [2],
        "device": CPU,
        "share_prefix": False,
        "should_stop": never_stop,
    }
    return generate_greedily(model, prompts, **(keywords | changes))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("model_type", sorted(PREFIX_TYPES))
def test_a_batch_answers_as_each_prompt_alone(tmp_path: Path, model_type: str, share: bool) -> None:
    model = load_base(tiny_base(build_tiny_model(tmp_path / "m", model_type=model_type)), torch.float32, CPU)
    alone = [answer(model, [prompt])[0] for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in alone}) > 1
    assert answer(model, PROMPTS, share_prefix=share) == alone


def test_an_answer_ends_at_the_end_token(tiny_folder: Path) -> None:
    model = load_base(tiny_base(tiny_folder), torch.float32, CPU)
    free = answer(model, PROMPTS[:1])[0]
    assert len(free) == 6
    assert answer(model, PROMPTS[:1], end_ids=[free[2]])[0] == free[: free.index(free[2])]


def test_it_stops_between_tokens(tiny_folder: Path) -> None:
    model = load_base(tiny_base(tiny_folder), torch.float32, CPU)
    asked = iter(["", "", "cancel", "cancel", "cancel"])
    with pytest.raises(Stopped):
        answer(model, PROMPTS, max_new_tokens=100_000, should_stop=lambda: next(asked, "cancel"))
