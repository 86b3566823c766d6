"""Requests to a generator, and the tokens that it answers with."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.training.encoding import Ids


@dataclass(frozen=True)
class Sampling:
    """The choice of the next token: the likeliest one with temperature 0, else drawn by `seed`."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Reference:
    """A whole row, which begins with the prompt, and the positions of its tokens that are scored."""

    ids: Ids
    targets: Ids


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to one adapter, or to the bare base model without one. Keys of live requests differ.

    `reference`: the tokens of this row are scored in the same forward that reads the prompt. As far as they
    are the tokens that the model itself would choose, they need no forward of their own. With no tokens to
    generate the row is scored alone.
    """

    key: Hashable
    prompt: Ids
    adapter: str | None
    sampling: Sampling
    end_ids: frozenset[int] = frozenset()
    reference: Reference | None = None


@dataclass(frozen=True)
class Token:
    """The next token of a request; `finish` is `stop` after an end token, which has no id, or `length`.

    `losses`: of the scored tokens of a reference, in nats, with the first token of its request.
    """

    key: Hashable
    id: int | None
    finish: str = ""
    losses: Tensor | None = None


@dataclass(eq=False)
class Row:
    """A request with the tokens that are known of it, and how far they have been read.

    While a reference is read, `length` counts its tokens; then those of the prompt and the answer.
    """

    request: GenerationRequest
    ids: Ids
    length: int
    computed: int = 0  # tokens whose keys and values are known
    slot: int = -1
    awaited: Row | None = None  # computes the first `awaited_tokens`, which this row takes over
    awaited_tokens: int = 0
    past: Any = None  # Transformers' own cache, on the plain path
    generator: torch.Generator | None = None  # of drawn answers
    losses: list[Tensor] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)  # the model's own, at each token of the reference answer
    is_reading: bool = False

    @classmethod
    def of(cls, request: GenerationRequest) -> Row:
        prompt, reference = np.asarray(request.prompt), request.reference
        known = prompt if reference is None else np.asarray(reference.ids)
        room = max(len(known), len(prompt) + request.sampling.max_new_tokens)
        ids = np.zeros(room, dtype=np.int32)
        ids[: len(known)] = known
        row = cls(request, ids, len(prompt))
        if reference is not None:
            # The last target is predicted, not read.
            last = int(reference.targets[-1])
            row.is_reading = True
            row.length = max(last, len(prompt)) if request.sampling.max_new_tokens else last
        if request.sampling.temperature:
            row.generator = torch.Generator()
            if request.sampling.seed is None:
                row.generator.seed()
            else:
                row.generator.manual_seed(request.sampling.seed)
        return row

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    def due(self) -> list[int]:
        """Return the positions whose logits are needed once they are read, in order."""
        reference = self.request.reference
        if not self.is_reading or reference is None:
            return [self.length - 1]
        wanted = set((reference.targets - 1).tolist())
        if self.request.sampling.max_new_tokens:
            wanted.update(range(self.prompt_length - 1, self.length))
        return sorted(wanted)

    def take(self, places: list[int], logits: Tensor) -> list[Token]:
        """Note that tokens were read, with the logits [n, V] at `places`; return the tokens of the answer."""
        if not places:
            return []
        if not self.is_reading:
            return [self._append(sample(logits[0], self.request.sampling, self.generator))]
        assert self.request.reference is not None
        scored = set(self.request.reference.targets.tolist())
        own = [number for number, place in enumerate(places) if place + 1 in scored]
        targets = torch.from_numpy(self.ids[[places[number] + 1 for number in own]].astype(np.int64))
        self.losses.append(
            functional.cross_entropy(logits[own].float(), targets.to(logits.device), reduction="none").cpu()
        )
        if self.request.sampling.max_new_tokens:
            chosen = logits.argmax(-1).tolist()
            self.choices += [
                token for place, token in zip(places, chosen, strict=True) if place >= self.prompt_length - 1
            ]
        return self._begin_answer() if places[-1] == self.length - 1 else []

    def _begin_answer(self) -> list[Token]:
        """Return the tokens of the answer up to the first that differs from the reference."""
        losses, self.is_reading = torch.cat(self.losses), False
        key = self.request.key
        if not self.request.sampling.max_new_tokens:
            return [Token(key, None, "stop", losses)]
        self.length = self.prompt_length
        tokens: list[Token] = []
        for choice in self.choices:
            is_expected = choice == self.ids[self.length]
            tokens.append(self._append(choice))
            if tokens[-1].finish or not is_expected:
                break
        self.computed = min(self.computed, self.length - 1)
        first = tokens[0]
        return [Token(key, first.id, first.finish, losses), *tokens[1:]]

    def _append(self, token: int) -> Token:
        request = self.request
        if token in request.end_ids:
            return Token(request.key, None, "stop")
        self.ids[self.length] = token
        self.length += 1
        is_last = self.length == self.prompt_length + request.sampling.max_new_tokens
        return Token(request.key, token, "length" if is_last else "")


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Return one token id; top-p keeps the likeliest tokens whose probabilities sum to `top_p` at least."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    probabilities = (logits.float() / sampling.temperature).softmax(-1).cpu()
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))
