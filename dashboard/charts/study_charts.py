"""The result of a study, saved or not, as figures: positions on axes in percent of the width, for plain SVG.

SVG instead of a canvas: the same figure prints sharply, fits a phone and needs no script on a shared page.
Functions from rows to plain values; colours and lines are the style sheet's.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.charts import axes
from dashboard.charts.axes import AXIS_HEIGHT, LABEL_HEIGHT, Axis, Span, around_spans, axis_of, places_of
from dashboard.charts.curves import thin
from dashboard.models import MetricSeries, Study
from dashboard.models.studies.results.formats import format_estimate, format_metric
from dashboard.models.studies.results.result import AnyArm, AnyStudy, ArmResult, costs_of
from dashboard.templatetags.graftworks import duration, filesize, milliseconds, number
from workers.statistics.verdicts import MIN_SEEDS, Estimate

ROW_HEIGHT = 46
PARETO_HEIGHT, CURVES_HEIGHT = 340, 300
KEY_HEIGHT, KEY_LETTERS = 18, 38
# The distance of a number from its mark, as a share of the figure on a phone, and the sides of a mark.
BESIDE = 0.06
LEFT, RIGHT = -1, 1
# Widths of capitals, and of letters without case such as Chinese ones, in average small letters.
LETTER_WIDTHS = {"Lu": 1.6, "Lo": 2.0}
COLOURS = 5
# Cost of an arm -> (label, format of the number).
COSTS = {
    "trainable_parameters": (gettext_lazy("Trainable parameters"), number),
    "adapter_bytes": (gettext_lazy("Adapter size"), filesize),
    "peak_memory_bytes": (gettext_lazy("Peak memory"), filesize),
    "seconds": (gettext_lazy("Training time"), duration),
    "ms_per_token": (gettext_lazy("Time per token"), milliseconds),
}


def tick(study: AnyStudy, value: float) -> str:
    return f"{value:g}" if study.lower_is_better else f"{100 * value:g} %"


def shorten(name: str, length: int) -> str:
    """Cut a name to the width of `length` letters; the number that tells runs of one name apart stays."""
    text, separator, run = name.rpartition(" #")
    if separator and run.isdecimal():
        return f"{shorten(text, length)} #{run}"
    widths = itertools.accumulate(LETTER_WIDTHS.get(unicodedata.category(letter), 1.0) for letter in name)
    fitting = sum(width <= length for width in widths)
    return Truncator(name).chars(fitting)


def intervals(study: AnyStudy) -> dict[str, Any] | None:
    """Draw every arm and base model with mean, 95 % interval and seeds, by mean; None without arms."""
    result = study.result
    found = [(arm, own) for arm in study.arm_list if (own := result.of_arm(arm))]
    if not found:
        return None
    found.sort(key=lambda pair: pair[1].metric.mean, reverse=not study.lower_is_better)
    lines = [_line(study, arm, shown_estimate(own), own.by_seed) for arm, own in found]
    lines += [
        _line(study, None, base, []) | {"config": name if len(result.bases) > 1 else ""}
        for name, base in result.bases.items()
    ]
    axis = axis_of(lines)
    rows = [{**line, **places_of(line, axis), "y": ROW_HEIGHT * place} for place, line in enumerate(lines)]
    reference = result.of_arm(study.reference_arm)
    height = ROW_HEIGHT * len(rows)
    return {
        "rows": rows,
        "bases": [row for row in rows if row["is_base"]],
        "reference": axis.across(reference.metric.mean) if reference else None,
        "is_base_outside": any(row["beyond"] for row in rows),
        "is_cut": any(is_cut(row) for row in rows),
        "ticks": [(axis.across(value), tick(study, value)) for value in axis.ticks()],
        "floor": height + 2,
        "height": height + AXIS_HEIGHT,
    }


def shown_estimate(own: ArmResult) -> Estimate:
    """Return an arm's estimate; with fewer than three seeds only their mean, without an interval."""
    mean = own.metric.mean
    return own.metric if len(own.seeds) >= MIN_SEEDS else Estimate(mean, mean, mean)


def _line(study: AnyStudy, arm: AnyArm | None, estimate: Estimate, by_seed: list[float]) -> dict[str, Any]:
    return {
        "arm": arm,
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "seeds": by_seed,
        "name": shorten(arm.name, 28) if arm else _("Base model"),
        "config": arm.target_module_label if arm else "",
        "is_base": arm is None,
        "is_reference": arm is not None and arm.position == study.reference_arm.position,
        "words": format_estimate(study, estimate),
        "quality": format_metric(study, estimate.mean),
        "low_words": format_metric(study, estimate.low),
        "high_words": format_metric(study, estimate.high),
    }


def is_cut(places: dict[str, Any]) -> bool:
    """Return whether an interval continues outside of the figure, though its mean lies within."""
    return bool(not places.get("beyond") and (places["is_low_cut"] or places["is_high_cut"]))


def differences(study: AnyStudy) -> dict[str, Any]:
    """Place every arm's difference to the reference on a shared axis that marks 0 and the margin."""
    comparisons = [
        replace(one, low=one.difference, high=one.difference) if one.is_indicative else one
        for one in study.result.comparisons
    ]
    return axes.differences(comparisons, margin=study.margin)


def pareto(study: AnyStudy, cost: str) -> dict[str, Any] | None:
    """Draw quality against a cost; grey: another arm is certainly better at no more cost. None: no costs."""
    result = study.result
    points: list[dict[str, Any]] = []
    for arm in study.arm_list:
        own, value = result.of_arm(arm), costs_of(arm.final_runs())[cost]
        if own and value is not None:
            points.append(
                {
                    "position": arm.position,
                    "name": arm.name,
                    "cost": float(value),
                    **asdict(shown_estimate(own)),
                    "words": format_estimate(study, shown_estimate(own)),
                }
            )
    if not points:
        return None
    across = Axis.around((point["cost"] for point in points), zero=True)
    up = around_spans([Span(point["mean"], point["low"], point["high"]) for point in points])
    marks = [
        {
            "number": point["position"] + 1,
            "name": point["name"],
            "share": across.share(point["cost"]),
            "x": across.across(point["cost"]),
            "y": up.down(point["mean"], PARETO_HEIGHT),
            **up.upright(point["low"], point["high"], PARETO_HEIGHT),
            "words": point["words"],
            "is_dominated": any(dominates(other, point, result.certain_pairs) for other in points),
        }
        for point in points
    ]
    place_numbers(marks, PARETO_HEIGHT - AXIS_HEIGHT - LABEL_HEIGHT)
    label, written = COSTS[cost]
    return {
        "cost": cost,
        "label": label,
        "marks": marks,
        "tied": _tied_band(study, points, up),
        "ticks_x": [(across.across(value), written(value)) for value in across.ticks()],
        "ticks_y": [(up.down(value, PARETO_HEIGHT), tick(study, value)) for value in up.ticks(5)],
        "has_dominated": any(mark["is_dominated"] for mark in marks),
        "cut": [mark for mark in marks if is_cut(mark)],
        "base": format_metric(study, result.base.mean) if len(result.bases) == 1 and result.base else None,
        "floor": PARETO_HEIGHT - AXIS_HEIGHT,
        **key_of(marks, PARETO_HEIGHT),
    }


def _tied_band(study: AnyStudy, points: Sequence[dict[str, Any]], up: Axis) -> dict[str, Any] | None:
    """Return the band around the reference and the arms whose difference to it may be 0; None for none."""
    reference = study.reference_arm.position
    tied = {
        one.position for one in study.result.comparisons if one.low <= 0 <= one.high and not one.is_indicative
    }
    heights = [
        up.down(point["mean"], PARETO_HEIGHT) for point in points if point["position"] in {reference, *tied}
    ]
    if len(heights) < 2:
        return None
    return {
        "top": min(heights) - 8,
        "height": max(heights) - min(heights) + 16,
        "names": ", ".join(point["name"] for point in points if point["position"] in tied),
    }


def dominates(other: dict[str, Any], point: dict[str, Any], certain_pairs: list[list[int]]) -> bool:
    """Return whether `other` costs no more and is certainly better, by a comparison of these two arms."""
    return bool(other["cost"] <= point["cost"] and [other["position"], point["position"]] in certain_pairs)


def place_numbers(
    marks: Sequence[dict[str, Any]], bottom: float, sides: Sequence[int] = (RIGHT, LEFT)
) -> None:
    """Place each mark's number beside it or near, where it covers no mark and no other number.

    `share` of a mark: its position from 0 to 1; `y`: pixels from the top, at most `bottom` for a number.
    """
    taken = [(mark["share"], mark["y"]) for mark in marks]
    steps = sorted(range(-5 * len(marks), 5 * len(marks) + 1), key=abs)
    for mark in marks:
        share, height = mark["share"], mark["y"]
        places = [(share + side * BESIDE, height) for side in sides]
        # Most numbers find a place beside their mark, so places are made one by one.
        free = (
            (x, y)
            for y in (height + step * LABEL_HEIGHT / 3 for step in steps)
            if LABEL_HEIGHT / 2 <= y <= bottom
            for near in [[u for u, v in taken if abs(y - v) < LABEL_HEIGHT]]
            for x, _y in places
            if 0 <= x <= 1 or LEFT not in sides
            if not any(abs(x - u) < BESIDE for u in near)
        )
        x, mark["number_y"] = next(free, places[0])
        mark["is_left"] = x < mark["share"]
        taken.append((x, mark["number_y"]))


def key_of(marks: Sequence[dict[str, Any]], height: float) -> dict[str, Any]:
    """Return the names of the numbers, as lines below a figure of this height, and the height of all."""
    lines = [
        {**mark, "text": shorten(mark["name"], KEY_LETTERS), "line_y": height + KEY_HEIGHT * place}
        for place, mark in enumerate(marks, 1)
    ]
    return {"key": lines, "height": height + KEY_HEIGHT * len(lines) + 6}


def validation_curves(study: Study) -> dict[str, Any] | None:
    """Draw validation loss by step: each arm's mean over its seeds, in a band from lowest to highest."""
    runs = [(arm, [run.reused_from_id or run.pk for run in arm.final_runs()]) for arm in study.arms.all()]
    points = MetricSeries.objects.points_of([pk for _arm, pks in runs for pk in pks], "validation/loss")
    curves = {pk: dict(curve) for pk, curve in points.items()}
    bands = [
        (arm, band)
        for arm, pks in runs
        if len(band := band_of([curves[pk] for pk in pks if pk in curves])) > 1
    ]
    if not bands:
        return None
    steps = Axis.around(step for _arm, band in bands for step, *_values in band)
    losses = Axis.around(value for _arm, band in bands for _step, *values in band for value in values)
    room = CURVES_HEIGHT - AXIS_HEIGHT

    def down(value: float) -> float:
        return round(LABEL_HEIGHT + (room - LABEL_HEIGHT) * (1 - losses.share(value)), 1)

    def point(step: float, value: float) -> str:
        return f"{1000 * steps.share(step):.1f},{down(value)}"

    lines: list[dict[str, Any]] = [
        {
            "number": arm.position + 1,
            "name": arm.name,
            "colour": place % COLOURS,
            "dash": place // COLOURS,
            "line": " ".join(point(step, mean) for step, mean, _low, _high in band),
            "band": " ".join(
                [point(step, high) for step, _mean, _low, high in band]
                + [point(step, low) for step, _mean, low, _high in reversed(band)]
            ),
            "last": band[-1][1],
            "lowest": min(mean for _step, mean, _low, _high in band),
            "y": down(band[-1][1]),
            "share": 1.0,
        }
        for place, (arm, band) in enumerate(bands)
    ]
    place_numbers(lines, room - 6, sides=[RIGHT])
    return {
        "lines": lines,
        "ticks_x": [(f"{11 + 81 * steps.share(value):.2f}%", f"{value:g}") for value in steps.ticks()],
        "ticks_y": [(down(value), f"{value:g}") for value in losses.ticks()],
        "floor": room,
        **key_of(lines, CURVES_HEIGHT),
    }


def band_of(curves: Sequence[dict[int, float]]) -> list[tuple[int, float, float, float]]:
    """Return (step, mean, lowest, highest) at the steps that every curve has."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    found = []
    for step in shared:
        values = [curve[step] for curve in curves if math.isfinite(curve[step])]
        if len(values) == len(curves):
            found.append((step, sum(values) / len(values), min(values), max(values)))
    kept = {step for step, _value in thin([(step, mean) for step, mean, _low, _high in found], 200)}
    return [one for one in found if one[0] in kept]
