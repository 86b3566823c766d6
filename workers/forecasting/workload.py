"""Tokens, padding, learned positions and steps of a run, from the lengths of its rows.

Follows the engine: rows of a step are sorted by length before they are cut into micro-batches. Packed rows
have no padding and compute a shared prefix once; rows of other model types share a step with rows of their
length, so their padding is left out. Standard library only; knows no model and no device.
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
    largest_batch: float  # tokens of the largest micro-batch that the run is likely to compute
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
    rows: RowLengths,
    learn: Hyperparameters,
    *,
    is_packed: bool,
    validation_rows: int = 0,
    validation_lengths: RowLengths | None = None,
) -> Workload:
    """Return the workload of a run on rows that `RowLengths.truncated` has cut.

    `is_packed`: whether rows of this model type are packed; `validation_rows`: rows to choose from;
    `validation_lengths`: theirs, if they are of another dataset.
    """
    steps = learn.total_steps(rows.rows)
    batch = min(learn.per_device_train_batch_size, rows.rows)
    drawn = min(learn.rows_per_step, rows.rows)
    micro_batches = -(-drawn // batch)
    is_shared = is_packed and learn.allows_shared_prefix and batch > 1 and rows.prefix >= SHORTEST_PREFIX
    prefix = rows.prefix if is_shared else 0
    # Sorted by length, each row of a step is an order statistic of the rows drawn.
    drawn_rows = [rows.quantile((drawn - place) / (drawn + 1)) for place in range(drawn)]
    batches = [drawn_rows[start : start + batch] for start in range(0, drawn, batch)]
    computed = [sum(batch_rows) - prefix * (len(batch_rows) - 1) for batch_rows in batches]
    longest_row = rows.quantile(steps * drawn / (steps * drawn + 1))
    # The largest of that many sums lies about sqrt(2 ln steps) standard deviations above their mean.
    spread = math.sqrt(batch * 2 * math.log(steps)) * statistics.pstdev(rows.lengths) if is_packed else 0.0
    most = batch * (longest_row - prefix) + prefix
    largest = min(most, computed[0] + spread) if is_packed else most
    validated = validation_lengths or rows
    mean, validated_mean = statistics.fmean(rows.lengths), statistics.fmean(validated.lengths)
    plan = plan_validation(steps, steps * drawn, validation_rows, validated_mean / mean)
    validated_prefix = min(prefix, validated.prefix)
    validation_tokens = len(plan.steps) * (plan.rows * (validated_mean - validated_prefix) + validated_prefix)
    return Workload(
        steps=steps,
        micro_batches=micro_batches,
        rows=batch,
        longest_row=longest_row,
        largest_batch=largest,
        shared_prefix=prefix,
        computed_tokens=sum(computed),
        attention_pairs=sum(
            (length - prefix) * (length + prefix) / 2 for batch_rows in batches for length in batch_rows
        ),
        learned_tokens=drawn * rows.learned,
        total_tokens=steps * drawn * mean,
        validation_tokens=validation_tokens,
        validation_attention_pairs=validation_tokens * validated_mean / 2,
        validation_learned_tokens=len(plan.steps) * plan.rows * validated.learned,
        validations=len(plan.steps),
    )
