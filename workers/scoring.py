"""Seconds that scoring takes, before it starts: by arithmetic, as `workers.estimates` does for training.

One job loads the base, and for each subject reads every test row for its loss and writes its answer, many
rows at a time; afterwards it times a token for each adapter. What hardware and libraries add is learned by
`workers.calibration` from jobs that have ended. Standard library only; knows no rows and no tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workers.estimates import FORWARD_SPEED, START_SECONDS, ModelShape

# Changes whenever the formula does: jobs forecast by other sums teach it nothing.
FORMULA = 1
ROWS_AT_ONCE = 16
MOST_NEW_TOKENS = 256
# The general text and the general questions with four answers each, read once for each subject.
GENERAL_TOKENS = 5_500
# Of one layer, for one more token, however few rows there are: calls and the reading of weights.
CALL_SECONDS = 1e-3
# Two turns of so many tokens for each adapter and the base; and attaching it alone, twice.
TIMED_TOKENS, ATTACH_SECONDS = 48, 0.5


@dataclass(frozen=True)
class ScoringRows:
    """Test rows: how many, their mean tokens, whole and of the answer, and those with which all begin."""

    count: int
    tokens: float
    answer: float
    prefix: int = 0

    @property
    def read(self) -> float:
        """Tokens that are computed to read them once: what all begin with, once for each batch."""
        batches = math.ceil(self.count / ROWS_AT_ONCE)
        return self.count * (self.tokens - self.prefix) + batches * self.prefix

    @property
    def written(self) -> float:
        """Tokens that a batch writes: its longest answer, about twice the usual one, and a little more."""
        return min(MOST_NEW_TOKENS, 2 * self.answer + 8)


def estimate_scoring_time(
    shape: ModelShape, rows: ScoringRows, per_second: float, kind: str, *, adapters: int, with_base: bool
) -> float:
    """One job that scores so many adapters, and the base where nobody has yet; `kind` is `cpu` or `cuda`."""
    speed = per_second * FORWARD_SPEED
    head = shape.vocabulary * shape.hidden
    learned = rows.count * rows.answer
    # Once for the loss, and once without the answer to begin writing one.
    read = 2 * rows.read - learned + GENERAL_TOKENS
    batches = math.ceil(rows.count / ROWS_AT_ONCE)
    write = batches * rows.written
    calls = shape.layers * CALL_SECONDS
    one = 2 * (read * shape.body + learned * head) / speed + write * (
        2 * min(rows.count, ROWS_AT_ONCE) * (shape.body + head) / speed + calls
    )
    timed = (adapters + 1) * TIMED_TOKENS * (2 * (shape.body + head) / speed + calls)
    start = START_SECONDS[kind] + shape.parameters * 4 / 1e9
    return start + (adapters + with_base) * one + timed + 2 * adapters * ATTACH_SECONDS
