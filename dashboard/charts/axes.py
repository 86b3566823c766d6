"""Axes of figures: the range of numbers that a figure shows, and the position of each number.

Places are percent of the width, or pixels from the top. Knows neither studies nor words.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Room at both ends, so that a mark on the edge is drawn whole.
EDGE = 3.0
AXIS_HEIGHT, LABEL_HEIGHT = 34, 15
# Arms that would share less than this part of an axis with the base model have an axis of their own.
LEAST_PART = 0.4
# An interval reaches at most so many times the usual half-width from its mean before a picture cuts it.
LONGEST_REACH = 3.0
# Half of what lies between the points is always room for an interval, however narrow the others are.
ROOM_BESIDE = 0.5
# Less than this is not worth an interval that is cut.
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
    """Every point and mark, and every interval but those that would press all others together.

    An interval that is far wider than the usual one is shown as far as three usual half-widths from its
    mean: two seeds that lie apart make one of eighty points beside others of ten.
    """
    points = [*marks, *(value for one in spans for value in (one.mean, *one.points))]
    whole = Axis.around([*points, *(value for one in spans for value in (one.low, one.high))])
    halves = [half for one in spans for half in (one.mean - one.low, one.high - one.mean)]
    usual = statistics.median_low(halves) if halves else 0.0
    reach = max(LONGEST_REACH * usual, ROOM_BESIDE * (max(points) - min(points)) if points else 0.0)
    if not reach:
        return whole
    ends = [
        value for one in spans for value in (max(one.low, one.mean - reach), min(one.high, one.mean + reach))
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


def differences(found: Sequence[Difference], *, margin: float | None = None) -> dict[str, Any]:
    """Place differences on a shared axis that marks 0, and the margin if there is one; rows by position."""
    marks = [0.0] if margin is None else [0.0, -margin]
    axis = around_spans([Span(one.difference, one.low, one.high) for one in found], marks=marks)
    return {
        "zero": axis.across(0.0),
        "margin": None if margin is None else axis.across(-margin),
        "rows": {
            one.position: {**axis.whisker(one.low, one.high), "mean": axis.across(one.difference)}
            for one in found
        },
    }
