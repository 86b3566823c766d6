"""How long one more token takes: the base alone, and each adapter alone on it, unmerged as it ships.

An adapter that is loaded beside another one costs time in every layer it wraps, so each is attached to a base
that carries nothing else. The list is gone through forwards and backwards: a machine that slows down
meanwhile slows down for all. Knows nothing of scores; serving many requests at once is something else.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from workers.engine.data import Ids
from workers.engine.model import positions
from workers.engine.runtime import stop_if_asked
from workers.events import Progress, Report, ShouldStop

BASE = "base"
TOKENS = 24
# The first tokens of a turn find cold caches.
WARM_UP = 3
FEWEST = 4
TURN_SECONDS = 4.0
LONGEST_PROMPT = 256


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
    """Median milliseconds per generated token of one request, for the base and for each name.

    `attach` wraps the bare base with one adapter; it is taken off again after its turn.
    """
    order = [BASE, *names]
    turns = [*order, *reversed(order)]
    taken: Mapping[str, list[float]] = {name: [] for name in order}
    for done, name in enumerate(turns):
        report(Progress("timing", done, len(turns)))
        stop_if_asked(should_stop)
        model = base if name == BASE else attach(name)
        taken[name].extend(_turn(model, prompt, device, should_stop))
        if name != BASE:
            model.unload()
    report(Progress("timing", len(turns), len(turns)))
    return {name: 1000 * statistics.median(seconds) for name, seconds in taken.items()}


@torch.inference_mode()
def _turn(model: Any, prompt: Ids, device: torch.device, should_stop: ShouldStop) -> list[float]:
    """Seconds between one token and the next, for a few tokens after `prompt`."""
    from transformers.generation.configuration_utils import GenerationConfig

    moments: list[float] = []
    began = time.monotonic()

    def note(*_arguments: Any, **_keywords: Any) -> torch.Tensor:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moments.append(time.perf_counter())
        is_late = len(moments) > WARM_UP + FEWEST and time.monotonic() - began > TURN_SECONDS
        return torch.full((1,), bool(should_stop()) or is_late, device=device)

    make: Any = GenerationConfig
    # The end of the prompt, with room for the answer where the model has few positions.
    longest = max(1, min(LONGEST_PROMPT, (positions(model) or sys.maxsize) - TOKENS))
    ids = torch.as_tensor(prompt[-longest:], dtype=torch.int64, device=device)[None]
    # No end token: every model writes as many tokens as the others, whatever it would say.
    settings = make(do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS, pad_token_id=0)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=settings,
        stopping_criteria=[note],
    )
    stop_if_asked(should_stop)
    return [after - before for before, after in zip(moments[WARM_UP:], moments[WARM_UP + 1 :], strict=False)]
