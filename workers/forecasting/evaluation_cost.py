"""Seconds that an evaluation job takes, estimated before it starts.

One job loads the base model, and for each subject reads every test row with its expected answer once, and
writes the model's own where it differs; then it times single tokens for each adapter. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.forecasting.training_cost import ModelShape, load_seconds

# Changes with the formula: jobs estimated by another version are not used for calibration.
FORMULA = 3
STEP_TOKENS, STEP_ROWS = 256, 32
MAX_NEW_TOKENS = 256
# The fixed general text, and the general questions with four answers each, read once for each subject; and
# the scored tokens of both.
GENERAL_TOKENS, GENERAL_TARGETS = 2_250, 1_350
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
    def read_tokens(self) -> float:
        """Return the tokens computed to read every row once; a shared prefix is computed once."""
        return self.count * (self.tokens - self.prefix) + self.prefix

    @property
    def written_tokens(self) -> float:
        """Return the tokens of all answers, as if each differed from the expected one from its beginning."""
        return self.count * min(MAX_NEW_TOKENS, self.answer)


def estimate_scoring_time(
    shape: ModelShape, rows: ScoringRows, per_second: float, kind: str, *, adapters: int, with_base: bool
) -> float:
    """Return the seconds of one job for these adapters, and for the base model if it has no scores yet.

    A forward pass costs 2N operations per token, and the head only at learned positions. `kind`: `cpu` or
    `cuda`.
    """
    head = shape.vocab_size * shape.hidden_size
    scored = rows.count * rows.answer + GENERAL_TARGETS
    read = rows.read_tokens + GENERAL_TOKENS
    calls = shape.num_layers * CALL_SECONDS
    token = 2 * (shape.linear_parameters + head) / per_second
    subject = 2 * (read * shape.linear_parameters + scored * head) / per_second
    subject += rows.written_tokens * token
    subject += (read / STEP_TOKENS + rows.written_tokens / STEP_ROWS) * calls
    timing = (adapters + 1) * TIMED_TOKENS * (token + calls) + 2 * adapters * ATTACH_SECONDS
    return load_seconds(shape.parameters, kind) + (adapters + with_base) * subject + timing
