"""Axes of figures: the range of numbers that a figure shows, and the position of each number.

Positions are percent of the width, or pixels from the top.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Margin at both ends in percent, so that a mark on the edge is drawn whole.
EDGE = 3.0
AXIS_HEIGHT, LABEL_HEIGHT = 34, 15
# If the arms would fill less than this share of the axis, the base model is left out of it.
LEAST_PART = 0.4
# Intervals are cut at this multiple of the median half-width.
LONGEST_REACH = 3.0
# Intervals are never cut within this share of the range of the points.
ROOM_BESIDE = 0.5
# Intervals are cut only if that shortens the axis by this factor.
LEAST_GAIN = 1.5


@dataclass(frozen=True)
class Axis:
    """A range of numbers, with the position of each of them."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float], *, zero: bool = False) -> Axis:
        """Return an axis that shows all values, and 0 if wanted; its length is never 0."""
        known = [*values, *([0.0] if zero else [])]
        low, high = min(known, default=0.0), max(known, default=1.0)
        if high - low < 1e-9:
            reach = abs(low) * 0.1 or 0.1
            low, high = low - reach, high + reach
        return cls(low, high)

    def share(self, value: float) -> float:
        """Return the position from 0 to 1 within the axis."""
        return (value - self.low) / (self.high - self.low)

    def beyond(self, low: float, high: float) -> str:
        """Return the side on which a range lies wholly outside: left, right or ""."""
        return "left" if high < self.low else "right" if low > self.high else ""

    def across(self, value: float) -> str:
        """Return the distance from the left, in percent."""
        return f"{EDGE + (100 - 2 * EDGE) * self.share(value):.2f}%"

    def down(self, value: float, height: float) -> float:
        """Return the distance from the top of a figure of `height` pixels; high values lie above."""
        room = height - AXIS_HEIGHT - 2 * LABEL_HEIGHT
        return round(LABEL_HEIGHT + room * (1 - self.share(value)), 1)

    def ticks(self, count: int = 4) -> list[float]:
        """Return round numbers within the axis."""
        rough = (self.high - self.low) / count
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(place * step, 12) for place in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def whisker(self, low: float, high: float) -> dict[str, Any]:
        """Return both ends of an interval; an end outside of the axis is cut at the edge of the figure."""
        is_low_cut, is_high_cut = (self.is_outside(value) for value in (low, high))
        return {
            "low": "0%" if is_low_cut else self.across(low),
            "high": "100%" if is_high_cut else self.across(high),
            "is_low_cut": is_low_cut,
            "is_high_cut": is_high_cut,
        }

    def is_outside(self, value: float) -> bool:
        """Return whether a value lies beyond an end by more than rounding."""
        slack = 1e-9 * (self.high - self.low)
        return not self.low - slack <= value <= self.high + slack

    def upright(self, low: float, high: float, height: float) -> dict[str, Any]:
        """Return a vertical interval in a figure of `height` pixels, cut at its edges."""
        low_end, high_end = max(low, self.low), min(high, self.high)
        return {
            "low": self.down(low_end, height),
            "high": self.down(high_end, height),
            "is_low_cut": self.is_outside(low),
            "is_high_cut": self.is_outside(high),
        }


@dataclass(frozen=True)
class Span:
    """A mean with its interval, and further points drawn with it."""

    mean: float
    low: float
    high: float
    points: tuple[float, ...] = ()


def around_spans(spans: Sequence[Span], *, marks: Iterable[float] = ()) -> Axis:
    """Return an axis that shows all points and marks, and all intervals of usual width.

    A far wider interval, as of two distant seeds, is cut: it would compress all others.
    """
    points = [*marks, *(value for span in spans for value in (span.mean, *span.points))]
    whole = Axis.around([*points, *(value for span in spans for value in (span.low, span.high))])
    halves = [half for span in spans for half in (span.mean - span.low, span.high - span.mean)]
    usual = statistics.median_low(halves) if halves else 0.0
    reach = max(LONGEST_REACH * usual, ROOM_BESIDE * (max(points) - min(points)) if points else 0.0)
    if not reach:
        return whole
    ends = [
        value
        for span in spans
        for value in (max(span.low, span.mean - reach), min(span.high, span.mean + reach))
    ]
    cut = Axis.around([*points, *ends])
    return cut if whole.high - whole.low > LEAST_GAIN * (cut.high - cut.low) else whole


def axis_of(lines: Sequence[dict[str, Any]]) -> Axis:
    """Return the axis of all lines, or of the arms alone if a distant base model would compress them."""
    arms, whole = (
        around_spans([Span(line["mean"], line["low"], line["high"], tuple(line["seeds"])) for line in some])
        for some in ([line for line in lines if line["arm"]], lines)
    )
    is_pressed = arms.high - arms.low < LEAST_PART * (whole.high - whole.low)
    is_apart = all(arms.beyond(line["low"], line["high"]) for line in lines if not line["arm"])
    return arms if is_pressed and is_apart else whole


def places_of(line: dict[str, Any], axis: Axis) -> dict[str, Any]:
    """Return the positions of a line's marks; `beyond` names the side if it lies outside of the figure."""
    return {
        "mean": axis.across(line["mean"]),
        **axis.whisker(line["low"], line["high"]),
        "seeds": [axis.across(value) for value in line["seeds"]],
        "beyond": axis.beyond(line["low"], line["high"]),
    }


class Difference(Protocol):
    """A difference to the reference with its interval."""

    @property
    def position(self) -> int: ...
    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def differences(comparisons: Sequence[Difference], *, margin: float | None = None) -> dict[str, Any]:
    """Place differences on a shared axis that marks 0, and the margin if there is one; rows by position."""
    marks = [0.0] if margin is None else [0.0, -margin]
    axis = around_spans([Span(item.difference, item.low, item.high) for item in comparisons], marks=marks)
    return {
        "zero": axis.across(0.0),
        "margin": None if margin is None else axis.across(-margin),
        "rows": {
            item.position: {**axis.whisker(item.low, item.high), "mean": axis.across(item.difference)}
            for item in comparisons
        },
    }
