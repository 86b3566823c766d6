"""Generates greedy answers to many prompts at a time, padded on the left.

Knows nothing of scores or of chat templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from workers.contract.events import ShouldStop
from workers.contract.specs import SHORTEST_PREFIX
from workers.engine.training.data import common_prefix_length
from workers.engine.training.encoding import Ids
from workers.engine.training.runtime import stop_if_asked

ROWS_PER_BATCH = 16


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
    """Return the answers as token ids without the end token, in the order of `prompts`.

    `share_prefix`: compute the tokens that all prompts of a batch begin with once.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    settings = {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": list(end_ids) or None,
        "pad_token_id": end_ids[0] if end_ids else 0,
    }
    for start in range(0, len(order), ROWS_PER_BATCH):
        stop_if_asked(should_stop)
        part = order[start : start + ROWS_PER_BATCH]
        batch = [prompts[index] for index in part]
        prefix = _shared_prompt_prefix(batch) if share_prefix else 0
        batch_answers = _generate_batch(model, batch, prefix, settings, device, should_stop)
        for index, answer in zip(part, batch_answers, strict=True):
            answers[index] = answer
        on_rows(len(part))
    return answers


def _shared_prompt_prefix(prompts: list[Ids]) -> int:
    """Return how many tokens all prompts begin with; each keeps at least one of its own."""
    length = common_prefix_length(prompts, min(len(prompt) for prompt in prompts) - 1)
    return length if len(prompts) > 1 and length >= SHORTEST_PREFIX else 0


@torch.inference_mode()
def _generate_batch(
    model: Any,
    prompts: list[Ids],
    prefix: int,
    settings: dict[str, Any],
    device: torch.device,
    should_stop: ShouldStop,
) -> list[list[int]]:
    """Lay out rows as [shared prefix, padding, rest of the prompt], so that the prefix is one block."""
    from transformers.generation.configuration_utils import GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), longest), settings["pad_token_id"], dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, prompt in enumerate(prompts):
        rest = longest - (len(prompt) - prefix)
        ids[place, :prefix], mask[place, :prefix] = prompt[:prefix], 1
        ids[place, rest:], mask[place, rest:] = prompt[prefix:], 1
    past = None
    if prefix:
        past = model(input_ids=torch.from_numpy(ids[:1, :prefix]).to(device), use_cache=True).past_key_values
        past.batch_repeat_interleave(len(prompts))

    def stop_requested(*_arguments: Any, **_keywords: Any) -> torch.Tensor:
        return torch.full((len(prompts),), bool(should_stop()), device=device)

    make: Any = GenerationConfig
    output = model.generate(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        past_key_values=past,
        generation_config=make(**settings),
        stopping_criteria=[stop_requested],
    )
    stop_if_asked(should_stop)
    return [_before_end(answer, settings["eos_token_id"] or []) for answer in output[:, longest:].tolist()]


def _before_end(answer: list[int], end_ids: Sequence[int]) -> list[int]:
    for place, token in enumerate(answer):
        if token in end_ids:
            return answer[:place]
    return answer
