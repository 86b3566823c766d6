"""Renders the first imported rows as the base model reads them, and measures many for their token lengths.

Knows nothing of uploads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from workers.contract.errors import DataError
from workers.contract.events import ShouldStop
from workers.contract.specs import BaseSpec
from workers.engine.base_models import model
from workers.engine.runtime import stop_if_asked
from workers.engine.training import data
from workers.engine.training.encoding import CanonicalRow, Example, Ids, RowEncoder

PREVIEW_ROWS = 20
# Upper ends of the histogram's bins, in tokens; the last bin is open.
HISTOGRAM_EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Forecasts use the length of rows at 0, 1, ... 100 percent.
QUANTILES = numpy.linspace(0, 1, 101)


@dataclass
class Preview:
    """The rows for the page and the token counts of every measured row.

    `answer_ends`: where the last learned token of a row ends; `shared_prefix`: the tokens all rows share.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    answer_ends: list[int] = field(default_factory=list)
    target_counts: list[int] = field(default_factory=list)
    shared_prefix: Ids | None = None
    warnings: list[str] = field(default_factory=list)

    def measure(self, example: Example) -> None:
        tokens, targets = len(example.ids), example.target_count
        self.lengths.append(tokens)
        self.answer_ends.append(tokens - int(example.loss_mask[::-1].argmax()) if targets else 0)
        self.target_counts.append(targets)
        first_target = int(example.loss_mask.argmax()) if targets else tokens
        # The token that predicts the first target is never shared.
        start = example.ids[: max(0, first_target - 1)]
        if self.shared_prefix is None:
            self.shared_prefix = start
        limit = min(len(start), len(self.shared_prefix))
        self.shared_prefix = start[: data.common_prefix_length([self.shared_prefix, start], limit)]

    def token_lengths(self) -> dict[str, Any]:
        """Return, in tokens, statistics for the page and the quantiles and means that forecasts use."""
        if not self.lengths:
            return {"rows": 0}
        lengths = numpy.array(self.lengths)
        bins = numpy.searchsorted(HISTOGRAM_EDGES, lengths, side="left")
        counts = numpy.bincount(bins, minlength=len(HISTOGRAM_EDGES) + 1)
        return {
            "rows": len(lengths),
            "mean": round(float(lengths.mean()), 1),
            "p50": int(numpy.percentile(lengths, 50)),
            "p95": int(numpy.percentile(lengths, 95)),
            "max": int(lengths.max()),
            "histogram": {"up_to": [*HISTOGRAM_EDGES, None], "rows": [int(count) for count in counts]},
            "quantiles": _quantiles(self.lengths),
            "answer_ends": _quantiles(self.answer_ends),
            "learned_mean": round(sum(self.target_counts) / len(self.target_counts), 1),
            "shared_prefix": 0 if self.shared_prefix is None else len(self.shared_prefix),
        }


def _quantiles(counts: list[int]) -> list[int]:
    return [int(value) for value in numpy.quantile(counts, QUANTILES, method="closest_observation")]


def render_preview(folder: str, rows: Iterable[CanonicalRow], should_stop: ShouldStop) -> Preview:
    """Measure all `rows` and keep the first PREVIEW_ROWS as text."""
    base = BaseSpec(path=folder, name=Path(folder).name)
    model.check_folder(base)
    tokenizer, preview = model.load_tokenizer(base), Preview()
    with RowEncoder(tokenizer) as encoder:
        for row in rows:
            stop_if_asked(should_stop)
            try:
                example = encoder.encode([row])[0]
            except DataError as problem:
                if len(preview.warnings) < 3:
                    preview.warnings.append(problem.message)
                continue
            preview.measure(example)
            if len(preview.rows) < PREVIEW_ROWS:
                preview.rows.append(_page_row(tokenizer, example))
    return preview


def _page_row(tokenizer: Any, example: Example) -> dict[str, Any]:
    """Return the row's text in segments of learned and other tokens."""
    segments = []
    flags = zip(example.loss_mask.tolist(), example.ids.tolist(), strict=True)
    for learned, run in itertools.groupby(flags, key=lambda pair: pair[0]):
        ids = [token for _, token in run]
        segments.append({"text": tokenizer.decode(ids, skip_special_tokens=False), "learned": learned})
    return {
        "row": example.row,
        "text": "".join(segment["text"] for segment in segments),
        "segments": segments,
        "tokens": len(example.ids),
        "learned_tokens": example.target_count,
    }
