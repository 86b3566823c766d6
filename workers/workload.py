"""How much a run computes: tokens, padding, learned positions and steps, from the lengths of its rows.

Follows the engine: the longest rows of a step are cut into micro-batches first, and rows that
begin alike compute that part once. Standard library only; knows no model, no device and no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers.hyperparameters import Hyperparameters

# Model types whose rows share a prefix, and the other constants of the engine that the sums need; a test
# compares them with the engine's own.
PREFIX_TYPES = frozenset({"llama", "gpt2", "qwen2", "gpt_neox"})
SHORTEST_PREFIX = 8
VALIDATION_ROWS = 64
VALIDATIONS_PER_RUN = 10


@dataclass(frozen=True)
class RowLengths:
    """Tokens of a dataset's rows: percentiles 0..100 of whole rows and of where their answers end."""

    rows: int
    lengths: tuple[float, ...]
    ends: tuple[float, ...]
    learned: float
    prefix: int = 0

    @classmethod
    def from_report(cls, report: dict[str, Any], rows: int) -> RowLengths | None:
        """From what the import measured; versions imported earlier have a histogram alone."""
        if not report.get("rows") or not rows:
            return None
        lengths = tuple(report.get("quantiles") or _percentiles(report))
        return cls(
            rows=rows,
            lengths=lengths,
            ends=tuple(report.get("answer_ends") or lengths),
            learned=float(report.get("learned_mean") or lengths[50] / 4),
            prefix=int(report.get("shared_prefix") or 0),
        )

    def quantile(self, share: float) -> float:
        """The length that `share` of the rows do not exceed."""
        place = min(max(share, 0.0), 1.0) * (len(self.lengths) - 1)
        low = math.floor(place)
        high = min(low + 1, len(self.lengths) - 1)
        return self.lengths[low] + (self.lengths[high] - self.lengths[low]) * (place - low)

    def kept(self, max_length: int) -> RowLengths | None:
        """The rows as they are learned from: cut, and without those that lose their whole answer."""
        pairs = [
            (min(length, max_length), min(end, max_length))
            for length, end in zip(self.lengths, self.ends, strict=True)
            if end - self.learned < max_length
        ]
        if not pairs:
            return None
        whole = [min(max_length - (end - self.learned), self.learned) for end in self.ends]
        return RowLengths(
            rows=max(1, round(self.rows * len(pairs) / len(self.lengths))),
            lengths=tuple(length for length, _end in pairs),
            ends=tuple(end for _length, end in pairs),
            learned=_mean([tokens for tokens in whole if tokens > 0]),
            prefix=min(self.prefix, max_length - 1),
        )

    def cut(self, max_length: int) -> float:
        """Share of the rows whose answer ends behind `max_length`."""
        last = len(self.ends) - 1
        beyond = [place for place, end in enumerate(self.ends) if end > max_length]
        if not beyond:
            return 0.0
        first = beyond[0]
        if first == 0:
            return 1.0
        low, high = self.ends[first - 1], self.ends[first]
        return (last - first + (high - max_length) / (high - low)) / last


def _percentiles(report: dict[str, Any]) -> list[float]:
    """Percentiles read off a histogram, evenly spread within each bin."""
    histogram = report["histogram"]
    edges = [0, *(edge if edge is not None else report["max"] for edge in histogram["up_to"])]
    points, seen = [(0.0, 1.0)], 0
    for place, count in enumerate(histogram["rows"]):
        if count:
            seen += count
            points.append((seen / report["rows"], float(min(edges[place + 1], report["max"]))))
    found = []
    for hundredth in range(101):
        share = hundredth / 100
        after = next((place for place, point in enumerate(points) if point[0] >= share), len(points) - 1)
        (x0, y0), (x1, y1) = points[max(0, after - 1)], points[after]
        found.append(y1 if x1 == x0 else y0 + (y1 - y0) * (share - x0) / (x1 - x0))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Workload:
    """What one run asks of a device: counts of tokens, of steps and of calls, before any speed is known."""

    steps: int
    batches: int  # micro-batches of one step
    rows: int  # of a micro-batch
    longest: float  # the longest row that the run is likely to draw
    prefix: int  # tokens that are computed once for all rows of a micro-batch
    computed: float  # tokens that one step computes, padding included
    attended: float  # of those, times the tokens that each looks at on average
    learned: float  # learned tokens of one step
    seen: float  # tokens of the whole run, padding left out
    validated: float  # held-out tokens that are computed over the whole run
    validation_attended: float
    validation_learned: float
    validations: int


def estimate_workload(
    rows: RowLengths, learn: Hyperparameters, *, shares: bool, validation_rows: int = 0
) -> Workload:
    """What these settings ask for on rows that `RowLengths.kept` has cut.

    `shares`: whether this model type lets rows share a prefix; `validation_rows`: held-out rows there are.
    """
    steps = learn.total_steps(rows.rows)
    batch = min(learn.per_device_train_batch_size, rows.rows)
    drawn = min(learn.rows_per_step, rows.rows)
    batches = -(-drawn // batch)
    alike = shares and learn.lora_dropout == 0 and batch > 1 and rows.prefix >= SHORTEST_PREFIX
    prefix = rows.prefix if alike else 0
    # Sorted by length, the longest row of each micro-batch is an order statistic of the rows drawn.
    tops = [rows.quantile((drawn - place * batch) / (drawn + 1)) for place in range(batches)]
    whole = [(batch * (top - prefix) + prefix, (top + prefix) / 2) for top in tops]
    every = max(1, round(steps / VALIDATIONS_PER_RUN))
    validations = (steps // every + 1 + bool(steps % every)) if validation_rows else 0
    held_out = min(VALIDATION_ROWS, validation_rows)
    mean = _mean(rows.lengths)
    padded = held_out * (mean - prefix) + prefix
    return Workload(
        steps=steps,
        batches=batches,
        rows=batch,
        longest=rows.quantile(steps * drawn / (steps * drawn + 1)),
        prefix=prefix,
        computed=sum(tokens for tokens, _looked_at in whole),
        attended=sum(tokens * looked_at for tokens, looked_at in whole),
        learned=drawn * rows.learned,
        seen=steps * drawn * mean,
        validated=validations * padded,
        validation_attended=validations * padded * mean / 2,
        validation_learned=validations * held_out * rows.learned,
        validations=validations,
    )
