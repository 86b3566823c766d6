"""Greedy answers, many prompts at a time, padded on the left. Knows nothing of scores or of templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from workers.engine.data import Ids
from workers.engine.runtime import stop_if_asked
from workers.events import ShouldStop

ROWS_AT_ONCE = 16


def greedy(
    model: Any,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    device: torch.device,
    should_stop: ShouldStop,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[list[int]]:
    """The model's answers as token ids without the end token, in the order of `prompts`."""
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), ROWS_AT_ONCE):
        stop_if_asked(should_stop)
        part = order[start : start + ROWS_AT_ONCE]
        found = _batch(
            model, [prompts[index] for index in part], max_new_tokens, end_ids, device, should_stop
        )
        for index, answer in zip(part, found, strict=True):
            answers[index] = answer
        on_rows(len(part))
    return answers


@torch.inference_mode()
def _batch(
    model: Any,
    prompts: list[Ids],
    max_new_tokens: int,
    end_ids: Sequence[int],
    device: torch.device,
    should_stop: ShouldStop,
) -> list[list[int]]:
    from transformers.generation.configuration_utils import GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), longest), end_ids[0] if end_ids else 0, dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, prompt in enumerate(prompts):
        ids[place, longest - len(prompt) :] = prompt
        mask[place, longest - len(prompt) :] = 1

    def asked(*_arguments: Any, **_keywords: Any) -> torch.Tensor:
        return torch.full((len(prompts),), bool(should_stop()), device=device)

    settings: Any = GenerationConfig
    output = model.generate(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        generation_config=settings(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(end_ids) or None,
            pad_token_id=end_ids[0] if end_ids else 0,
        ),
        stopping_criteria=[asked],
    )
    stop_if_asked(should_stop)
    return [_until_end(answer, end_ids) for answer in output[:, longest:].tolist()]


def _until_end(answer: list[int], end_ids: Sequence[int]) -> list[int]:
    for place, token in enumerate(answer):
        if token in end_ids:
            return answer[:place]
    return answer
