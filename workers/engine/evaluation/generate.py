"""Greedy answers, many prompts at a time, padded in front of what is their own.

Knows nothing of scores or of chat templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from workers.contract.events import ShouldStop
from workers.engine.training.data import SHORTEST_PREFIX, Ids
from workers.engine.training.runtime import stop_if_asked

ROWS_AT_ONCE = 16


def generate_greedily(
    model: Any,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    device: torch.device,
    share_prefix: bool,
    should_stop: ShouldStop,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> list[list[int]]:
    """The model's answers as token ids without the end token, in the order of `prompts`.

    `share_prefix`: a beginning that all prompts of a batch have in common is computed once.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    settings = {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(end_ids) or None,
        "pad_token_id": end_ids[0] if end_ids else 0,
    }
    for start in range(0, len(order), ROWS_AT_ONCE):
        stop_if_asked(should_stop)
        part = order[start : start + ROWS_AT_ONCE]
        batch = [prompts[index] for index in part]
        begin = _common_start(batch) if share_prefix else 0
        found = _batch(model, batch, begin, settings, device, should_stop)
        for index, answer in zip(part, found, strict=True):
            answers[index] = answer
        on_rows(len(part))
    return answers


def _common_start(prompts: list[Ids]) -> int:
    """Tokens with which every prompt begins; each keeps at least one of its own."""
    limit = min(len(prompt) for prompt in prompts) - 1
    for prompt in prompts[1:]:
        differ = np.flatnonzero(prompts[0][:limit] != prompt[:limit])
        limit = int(differ[0]) if len(differ) else limit
    return limit if len(prompts) > 1 and limit >= SHORTEST_PREFIX else 0


@torch.inference_mode()
def _batch(
    model: Any,
    prompts: list[Ids],
    begin: int,
    settings: dict[str, Any],
    device: torch.device,
    should_stop: ShouldStop,
) -> list[list[int]]:
    """Rows are laid out as [common start, padding, the prompt's own rest], so that the start is one block."""
    from transformers.generation.configuration_utils import GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), longest), settings["pad_token_id"], dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, prompt in enumerate(prompts):
        rest = longest - (len(prompt) - begin)
        ids[place, :begin], mask[place, :begin] = prompt[:begin], 1
        ids[place, rest:], mask[place, rest:] = prompt[begin:], 1
    past = None
    if begin:
        past = model(input_ids=torch.from_numpy(ids[:1, :begin]).to(device), use_cache=True).past_key_values
        past.batch_repeat_interleave(len(prompts))

    def asked(*_arguments: Any, **_keywords: Any) -> torch.Tensor:
        return torch.full((len(prompts),), bool(should_stop()), device=device)

    make: Any = GenerationConfig
    output = model.generate(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        past_key_values=past,
        generation_config=make(**settings),
        stopping_criteria=[asked],
    )
    stop_if_asked(should_stop)
    return [_until_end(answer, settings["eos_token_id"] or []) for answer in output[:, longest:].tolist()]


def _until_end(answer: list[int], end_ids: Sequence[int]) -> list[int]:
    for place, token in enumerate(answer):
        if token in end_ids:
            return answer[:place]
    return answer
