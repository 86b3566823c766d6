"""Renders imported rows as a base model would read them: the first ones in full, many for their lengths.

Chat templates are programs of strangers: small, at most 2 seconds and 512 MB, and only ever in the engine's
own process. Knows nothing of uploads.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy

from workers.contract.errors import DataError, ModelError
from workers.contract.events import ShouldStop
from workers.contract.specs import BaseSpec
from workers.engine.base_models import model
from workers.engine.training import data
from workers.engine.training.data import CanonicalRow, Example
from workers.engine.training.runtime import stop_if_asked

PREVIEW_ROWS = 20
MAX_TEMPLATE_BYTES = 64_000
RENDER_SECONDS = 2.0
RENDER_BYTES = 512_000_000
# Upper ends of the histogram's bins, in tokens; the last bin is open.
HISTOGRAM_EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Shares of the rows for which forecasts get a length: 0, 1, ... 100 percent.
QUANTILES = numpy.linspace(0, 1, 101)


@dataclass
class Preview:
    """`rows` for the page, `warnings` about rows that do not render, and of every measured row: `lengths` in
    tokens, `ends` (where its last learned token ends) and `learned`. `begin`: tokens that all rows share.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    begin: data.Ids | None = None
    warnings: list[str] = field(default_factory=list)

    def measure(self, example: Example) -> None:
        """Count one row."""
        self.lengths.append(len(example.ids))
        self.ends.append(
            len(example.ids) - int(example.loss_mask[::-1].argmax()) if example.target_count else 0
        )
        self.learned.append(example.target_count)
        first = int(example.loss_mask.argmax()) if example.target_count else len(example.ids)
        begin = example.ids[: max(0, first - 1)]  # a target's own predecessor is never shared
        if self.begin is not None:
            both = min(len(begin), len(self.begin))
            differ = numpy.flatnonzero(begin[:both] != self.begin[:both])
            begin = begin[: int(differ[0]) if len(differ) else both]
        self.begin = begin

    def token_lengths(self) -> dict[str, Any]:
        """Median, 95th percentile, maximum and a histogram; counts of the measured rows.

        For forecasts also the `quantiles` of the lengths and of where answers end, the mean of learned tokens
        and how many tokens all rows begin with.
        """
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
            "answer_ends": _quantiles(self.ends),
            "learned_mean": round(sum(self.learned) / len(self.learned), 1),
            "shared_prefix": 0 if self.begin is None else len(self.begin),
        }


def _quantiles(counts: list[int]) -> list[int]:
    return [int(value) for value in numpy.quantile(counts, QUANTILES, method="closest_observation")]


def render_preview(folder: str, rows: Iterable[CanonicalRow], should_stop: ShouldStop) -> Preview:
    """Read all `rows`; the first twenty are kept as text."""
    tokenizer = _load_tokenizer(folder)
    preview = Preview()
    for row in rows:
        stop_if_asked(should_stop)
        try:
            example = _bounded_encode(tokenizer, row)
        except DataError as problem:
            if len(preview.warnings) < 3:
                preview.warnings.append(problem.message)
            continue
        preview.measure(example)
        if len(preview.rows) < PREVIEW_ROWS:
            preview.rows.append(_page_row(tokenizer, example))
    return preview


def _load_tokenizer(folder: str) -> Any:
    base = BaseSpec(path=folder, name=Path(folder).name)
    model.check_folder(base)
    tokenizer = model.load_tokenizer(base)
    size = len((tokenizer.chat_template or "").encode())
    if size > MAX_TEMPLATE_BYTES:
        raise ModelError(
            f"The chat template of {base.name} has {size / 1000:,.0f} kB. At most 64 kB are rendered."
        )
    # The tokenizer's threads start here, so that the memory limit below meets rendering alone.
    tokenizer(["a", "b"])
    return tokenizer


def _bounded_encode(tokenizer: Any, row: CanonicalRow) -> Example:
    try:
        with _time_limit(RENDER_SECONDS), _memory_limit(RENDER_BYTES):
            return data.encode(tokenizer, [row])[0]
    except (TimeoutError, MemoryError, OverflowError) as error:
        raise ModelError(
            f"The base model's chat template needs more than {RENDER_SECONDS:g} s or "
            f"{RENDER_BYTES / 1e6:.0f} MB for row {row.number}. Choose another base model."
        ) from error


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _memory_limit(extra: int) -> Iterator[None]:
    """Let the address space grow by `extra` bytes at most; only Linux tells the present size."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    present = int(statm.read_text().split()[0]) * resource.getpagesize()
    allowed = present + extra
    resource.setrlimit(
        resource.RLIMIT_AS, (allowed if hard == resource.RLIM_INFINITY else min(allowed, hard), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _page_row(tokenizer: Any, example: Example) -> dict[str, Any]:
    """The row's text, cut where learned and unlearned tokens meet."""
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
