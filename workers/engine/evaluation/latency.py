"""Measures the time of one more generated token: of the base model, and with each adapter, unmerged.

An adapter that is loaded beside another one costs time in every layer it wraps, so each is attached to a base
model that carries nothing else. All are measured in order and again in reverse order, so that a machine that
slows down meanwhile slows all of them. Knows nothing of scores or of throughput under load.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from workers.contract.events import Progress, Report, ShouldStop
from workers.engine.base_models.model import max_positions
from workers.engine.runtime import stop_if_asked
from workers.engine.training.encoding import Ids

BASE = "base"
TOKENS = 9
# The first tokens of a measurement find cold caches.
WARM_UP = 3
MIN_INTERVALS = 4
MEASUREMENT_SECONDS = 4.0
MAX_PROMPT_TOKENS = 256


def ms_per_token(
    base: Any,
    names: list[str],
    attach: Callable[[str], Any],
    prompt: Ids,
    *,
    device: torch.device,
    report: Report,
    should_stop: ShouldStop,
) -> dict[str, float]:
    """Return the median milliseconds per generated token of one request, for `base` and for each name.

    `attach` wraps the bare base model with one adapter, which is removed after its measurement.
    """
    order = [BASE, *names]
    measurements = [*order, *reversed(order)]
    seconds: Mapping[str, list[float]] = {name: [] for name in order}
    for done, name in enumerate(measurements):
        report(Progress("timing", done, len(measurements)))
        stop_if_asked(should_stop)
        model = base if name == BASE else attach(name)
        seconds[name].extend(_measure(model, prompt, device, should_stop))
        if name != BASE:
            model.unload()
    report(Progress("timing", len(measurements), len(measurements)))
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


@torch.inference_mode()
def _measure(model: Any, prompt: Ids, device: torch.device, should_stop: ShouldStop) -> list[float]:
    """Return the seconds between one token and the next, for a few tokens after `prompt`."""
    from transformers.generation.configuration_utils import GenerationConfig

    times: list[float] = []
    began = time.monotonic()

    def record_time(*_arguments: Any, **_keywords: Any) -> torch.Tensor:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())
        is_late = len(times) > WARM_UP + MIN_INTERVALS and time.monotonic() - began > MEASUREMENT_SECONDS
        return torch.full((1,), bool(should_stop()) or is_late, device=device)

    config_class: Any = GenerationConfig
    # The end of the prompt, with room for the answer if the model has few positions.
    longest = max(1, min(MAX_PROMPT_TOKENS, (max_positions(model) or sys.maxsize) - TOKENS))
    ids = torch.as_tensor(prompt[-longest:], dtype=torch.int64, device=device)[None]
    # Without an end token every model generates the same number of tokens.
    settings = config_class(do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS, pad_token_id=0)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=settings,
        stopping_criteria=[record_time],
    )
    stop_if_asked(should_stop)
    return [after - before for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]
