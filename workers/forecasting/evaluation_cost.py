"""Seconds that an evaluation job takes, estimated before it starts.

One job loads the base model, and for each subject reads every test row for its loss and writes its answer, in
batches; then it times single tokens for each adapter. Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workers.forecasting.training_cost import ModelShape, load_seconds

# Changes with the formula: jobs estimated by another version are not used for calibration.
FORMULA = 2
BATCH_ROWS = 16
MAX_NEW_TOKENS = 256
# The fixed general text and the general questions with four answers each, read once for each subject.
GENERAL_TOKENS = 5_500
# One layer for one more token, however few rows there are: kernel launches and reading the weights.
CALL_SECONDS = 1e-3
# Two passes over so many tokens for each adapter and the base; and attaching the adapter alone, twice.
TIMED_TOKENS, ATTACH_SECONDS = 48, 0.5


@dataclass(frozen=True)
class ScoringRows:
    """Test rows: their count, the mean tokens of a row and of its answer, and the prefix that all share."""

    count: int
    tokens: float
    answer: float
    prefix: int = 0

    @property
    def batches(self) -> int:
        """Number of batches."""
        return math.ceil(self.count / BATCH_ROWS)

    @property
    def read_tokens(self) -> float:
        """Return the tokens computed to read every row once; a shared prefix is computed once per batch."""
        return self.count * (self.tokens - self.prefix) + self.batches * self.prefix

    @property
    def written_tokens(self) -> float:
        """Return the tokens that a batch writes: its longest answer, twice the mean and a little."""
        return min(MAX_NEW_TOKENS, 2 * self.answer + 8)


def estimate_scoring_time(
    shape: ModelShape, rows: ScoringRows, per_second: float, kind: str, *, adapters: int, with_base: bool
) -> float:
    """Return the seconds of one job for these adapters, and for the base model if it has no scores yet.

    A forward pass costs 2N operations per token, and the head only at learned positions. `kind`: `cpu` or
    `cuda`.
    """
    head = shape.vocab_size * shape.hidden_size
    learned = rows.count * rows.answer
    # Once for the loss, and once without the answer to begin writing one.
    read = 2 * rows.read_tokens - learned + GENERAL_TOKENS
    calls = shape.num_layers * CALL_SECONDS
    token = 2 * (shape.linear_parameters + head) / per_second
    subject = 2 * (read * shape.linear_parameters + learned * head) / per_second
    subject += rows.batches * rows.written_tokens * (min(rows.count, BATCH_ROWS) * token + calls)
    timing = (adapters + 1) * TIMED_TOKENS * (token + calls) + 2 * adapters * ATTACH_SECONDS
    return load_seconds(shape.parameters, kind) + (adapters + with_base) * subject + timing
