"""Tokens, padding, learned positions and steps of a run, from the lengths of its rows.

Follows the engine: rows of a step are sorted by length before they are cut into micro-batches, and a shared
prefix is computed once. Standard library only; knows no model and no device.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import SHORTEST_PREFIX
from workers.contract.validation import plan_validation


@dataclass(frozen=True)
class RowLengths:
    """Token lengths of a dataset's rows: percentiles 0 to 100 of whole rows and of the ends of answers."""

    rows: int
    lengths: tuple[float, ...]
    ends: tuple[float, ...]
    learned: float  # tokens of the mean answer
    prefix: int = 0  # tokens that all rows begin with

    @classmethod
    def from_report(cls, report: dict[str, Any], rows: int) -> RowLengths | None:
        """Return the lengths that an import measured; None where it measured none."""
        if not report.get("quantiles") or not rows:
            return None
        return cls(
            rows=rows,
            lengths=tuple(report["quantiles"]),
            ends=tuple(report["answer_ends"]),
            learned=float(report["learned_mean"]),
            prefix=int(report["shared_prefix"]),
        )

    @classmethod
    def full(cls, rows: int, max_length: int) -> RowLengths:
        """Return rows that all fill the maximum length, a quarter of it learned."""
        length = float(max_length)
        return cls(rows, (length, length), (length, length), max(1.0, length / 4))

    def quantile(self, share: float) -> float:
        """Return the length that `share` of the rows do not exceed."""
        place = min(max(share, 0.0), 1.0) * (len(self.lengths) - 1)
        low = math.floor(place)
        high = min(low + 1, len(self.lengths) - 1)
        return self.lengths[low] + (self.lengths[high] - self.lengths[low]) * (place - low)

    def truncated(self, max_length: int) -> RowLengths | None:
        """Return the rows cut to `max_length`, without those that lose their whole answer; None if all do."""
        pairs = [
            (min(length, max_length), min(end, max_length))
            for length, end in zip(self.lengths, self.ends, strict=True)
            if end - self.learned < max_length
        ]
        if not pairs:
            return None
        learned = [min(max_length - (end - self.learned), self.learned) for end in self.ends]
        return RowLengths(
            rows=max(1, round(self.rows * len(pairs) / len(self.lengths))),
            lengths=tuple(length for length, _end in pairs),
            ends=tuple(end for _length, end in pairs),
            learned=statistics.fmean([tokens for tokens in learned if tokens > 0]),
            prefix=min(self.prefix, max_length - 1),
        )

    def cut_share(self, max_length: int) -> float:
        """Return the share of the rows whose answer ends behind `max_length`."""
        last = len(self.ends) - 1
        first = next((place for place, end in enumerate(self.ends) if end > max_length), None)
        if first is None:
            return 0.0
        if first == 0:
            return 1.0
        low, high = self.ends[first - 1], self.ends[first]
        return (last - first + (high - max_length) / (high - low)) / last


@dataclass(frozen=True)
class Workload:
    """Counts of tokens, steps and micro-batches of one run, before any speed is known."""

    steps: int
    micro_batches: int  # per step
    rows: int  # per micro-batch
    longest_row: float  # tokens of the longest row that the run is likely to draw
    shared_prefix: int  # tokens that are computed once for all rows of a micro-batch
    computed_tokens: float  # per step, padding included
    attention_pairs: float  # per step: each computed token times the positions it attends to
    learned_tokens: float  # per step
    total_tokens: float  # of the whole run, without padding
    validation_tokens: float  # of the whole run
    validation_attention_pairs: float
    validation_learned_tokens: float
    validations: int


def estimate_workload(
    rows: RowLengths, learn: Hyperparameters, *, shares_prefix: bool, validation_rows: int = 0
) -> Workload:
    """Return the workload of a run on rows that `RowLengths.truncated` has cut.

    `shares_prefix`: whether this model type lets rows share a prefix; `validation_rows`: rows of that split.
    """
    steps = learn.total_steps(rows.rows)
    batch = min(learn.per_device_train_batch_size, rows.rows)
    drawn = min(learn.rows_per_step, rows.rows)
    micro_batches = -(-drawn // batch)
    is_shared = shares_prefix and learn.allows_shared_prefix and batch > 1 and rows.prefix >= SHORTEST_PREFIX
    prefix = rows.prefix if is_shared else 0
    # Sorted by length, the longest row of each micro-batch is an order statistic of the rows drawn.
    longest = [rows.quantile((drawn - place * batch) / (drawn + 1)) for place in range(micro_batches)]
    computed = [batch * (length - prefix) + prefix for length in longest]
    plan = plan_validation(steps, steps * drawn, validation_rows)
    mean = statistics.fmean(rows.lengths)
    validation_tokens = len(plan.steps) * (plan.rows * (mean - prefix) + prefix)
    return Workload(
        steps=steps,
        micro_batches=micro_batches,
        rows=batch,
        longest_row=rows.quantile(steps * drawn / (steps * drawn + 1)),
        shared_prefix=prefix,
        computed_tokens=sum(computed),
        attention_pairs=sum(
            tokens * (length + prefix) / 2 for tokens, length in zip(computed, longest, strict=True)
        ),
        learned_tokens=drawn * rows.learned,
        total_tokens=steps * drawn * mean,
        validation_tokens=validation_tokens,
        validation_attention_pairs=validation_tokens * mean / 2,
        validation_learned_tokens=len(plan.steps) * plan.rows * rows.learned,
        validations=len(plan.steps),
    )
