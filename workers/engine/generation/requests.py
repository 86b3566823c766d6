"""Requests to a generator, and the tokens that it answers with."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workers.engine.training.encoding import Ids


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token: the likeliest one with temperature 0, else drawn by `seed`."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to one adapter, or to the bare base model without one. Keys of live requests differ."""

    key: Hashable
    prompt: Ids
    adapter: str | None
    sampling: Sampling
    end_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Token:
    """The next token of a request; `finish` is `stop` after an end token, which has no id, or `length`."""

    key: Hashable
    id: int | None
    finish: str = ""


@dataclass(eq=False)
class Row:
    """A request with the tokens that are known of it: the prompt, then the answer so far."""

    request: GenerationRequest
    ids: Ids  # with room for the whole answer
    length: int
    computed: int = 0  # tokens whose keys and values are known
    slot: int = -1
    past: object = None  # Transformers' own cache, on the plain path
    generator: torch.Generator = field(default_factory=torch.Generator)

    @classmethod
    def of(cls, request: GenerationRequest) -> Row:
        prompt = np.asarray(request.prompt, dtype=np.int32)
        ids = np.zeros(len(prompt) + request.sampling.max_new_tokens, dtype=np.int32)
        ids[: len(prompt)] = prompt
        row = cls(request, ids, len(prompt))
        seed = request.sampling.seed
        if seed is None:
            row.generator.seed()
        else:
            row.generator.manual_seed(seed)
        return row

    @property
    def prompt_length(self) -> int:
        return len(self.ids) - self.request.sampling.max_new_tokens

    def take(self, logits: Tensor) -> Token:
        """Choose the next token from the logits [V] and append it."""
        request = self.request
        token = sample(logits, request.sampling, self.generator)
        if token in request.end_ids:
            return Token(request.key, None, "stop")
        self.ids[self.length] = token
        self.length += 1
        return Token(request.key, token, "length" if self.length == len(self.ids) else "")


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Return one token id; top-p keeps the likeliest tokens whose probabilities sum to `top_p` at least."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    probabilities = (logits.float() / sampling.temperature).softmax(-1).cpu()
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))
