"""A finished study as pictures: places on axes in percent of the width, ready for plain SVG.

SVG instead of a script's canvas: the same figure prints sharply, reads on a phone and needs no script on a
shared page. Pure functions from rows to plain values; what they look like is the style sheet's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard import axes
from dashboard.axes import AXIS_HEIGHT, LABEL_HEIGHT, Axis, Span, around_spans, axis_of, places_of
from dashboard.charts import thin
from dashboard.models import MetricSeries, Study
from dashboard.models.study_result import costs_of
from dashboard.models.study_words import Judged
from dashboard.templatetags.graftworks import duration, filesize, milliseconds, number
from workers.verdicts import MIN_SEEDS

ROW_HEIGHT = 46
PARETO_HEIGHT, CURVES_HEIGHT = 340, 300
# How wide a name beside a mark is at most, as a share of the figure: on a phone 7 of 340 pixels per letter.
LETTER = 7 / 340
COLOURS = 5
# What an arm costs -> (label, how the number is written).
COSTS = {
    "trainable_parameters": (gettext_lazy("Trainable parameters"), number),
    "adapter_bytes": (gettext_lazy("Adapter size"), filesize),
    "peak_memory_bytes": (gettext_lazy("Peak memory"), filesize),
    "seconds": (gettext_lazy("Training time"), duration),
    "ms_per_token": (gettext_lazy("Time per token"), milliseconds),
}


def quality(study: Judged, value: float) -> str:
    """A value of the study's metric as people read it."""
    return f"{value:.3f}" if study.lower_is_better else f"{100 * value:.1f} %"


def with_interval(study: Judged, estimate: dict[str, float]) -> str:
    """A mean with its 95 % interval."""
    mean, low, high = (quality(study, estimate[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low} – {high})"


def tick(study: Judged, value: float) -> str:
    return f"{value:g}" if study.lower_is_better else f"{100 * value:g} %"


def intervals(study: Study) -> dict[str, Any]:
    """Every arm and the base model with mean, 95 % interval and seeds, by mean: the order decides nothing."""
    found = {arm["name"]: arm for arm in study.result.get("arms", [])}
    base = study.result.get("base")
    lines = [
        {"arm": arm, **found[arm.name]["metric"], "seeds": found[arm.name]["by_seed"]}
        for arm in study.arms.all()
        if arm.name in found
    ]
    lines.sort(key=lambda line: line["mean"], reverse=not study.lower_is_better)
    lines += [{"arm": None, **base, "seeds": []}] if base else []
    axis = axis_of(lines)
    reference = found.get(study.reference)
    rows = [
        {
            "name": Truncator(line["arm"].name).chars(32) if line["arm"] else _("Base model"),
            "config": config_label(line["arm"]) if line["arm"] else "",
            "is_base": line["arm"] is None,
            "is_reference": bool(line["arm"] and line["arm"].name == study.reference),
            "words": with_interval(study, line),
            "quality": quality(study, line["mean"]),
            **places_of(line, axis),
            **ends_in_words(study, line),
            "y": ROW_HEIGHT * place,
        }
        for place, line in enumerate(lines)
    ]
    height = ROW_HEIGHT * len(rows)
    return {
        "rows": rows,
        "base": next((row for row in rows if row["is_base"]), None),
        "reference": axis.across(reference["metric"]["mean"]) if reference else None,
        "is_base_outside": any(row["beyond"] for row in rows),
        "is_cut": any(is_cut(row) for row in rows),
        "ticks": [(axis.across(value), tick(study, value)) for value in axis.ticks()],
        "floor": height + 2,
        "height": height + AXIS_HEIGHT,
    }


def is_cut(places: dict[str, Any]) -> bool:
    """Whether an interval goes on outside of the picture, though its mean lies within."""
    return bool(not places.get("beyond") and (places["is_low_cut"] or places["is_high_cut"]))


def ends_in_words(study: Judged, line: dict[str, float]) -> dict[str, str]:
    """The ends of an interval, to be read where it is cut."""
    return {"low_words": quality(study, line["low"]), "high_words": quality(study, line["high"])}


def config_label(arm: Any) -> str:
    """What the arm trains, where its name does not say so already."""
    label = str(arm.target_module_config.name)
    return "" if label.lower() == arm.name.lower() else label


def differences(study: Study) -> dict[str, Any]:
    """Arm -> its difference to the reference on a shared axis that marks no difference and the margin."""
    return axes.differences(study.result.get("comparisons", []), margin=study.margin)


def pareto(study: Study, cost: str) -> dict[str, Any] | None:
    """Quality against a cost; grey are arms that another certainly beats at no more cost. None: no costs."""
    known = {arm["name"]: arm for arm in study.result.get("arms", [])}
    points = []
    for arm in study.arms.all():
        value = costs_of(arm).get(cost)
        if arm.name in known and value is not None:
            points.append({"name": arm.name, "cost": float(value), **known[arm.name]["metric"]})
    if not points:
        return None
    base = study.result.get("base")
    across = Axis.around((point["cost"] for point in points), zero=True)
    up = around_spans([Span(point["mean"], point["low"], point["high"]) for point in points])
    tied = [point for point in points if point["name"] in tied_with_reference(study)]
    marks = _marks(study, points, across, up)
    label, written = COSTS[cost]
    return {
        "cost": cost,
        "label": label,
        "marks": apart(marks, PARETO_HEIGHT - AXIS_HEIGHT - LABEL_HEIGHT),
        "tied": _band(study, tied, up) if len(tied) > 1 else None,
        "ticks_x": [(across.across(value), written(value)) for value in across.ticks()],
        "ticks_y": [(up.down(value, PARETO_HEIGHT), tick(study, value)) for value in up.ticks(5)],
        "has_dominated": any(mark["is_dominated"] for mark in marks),
        "cut": [mark for mark in marks if is_cut(mark)],
        "base": quality(study, base["mean"]) if base else None,
        "floor": PARETO_HEIGHT - AXIS_HEIGHT,
        "height": PARETO_HEIGHT,
    }


def _marks(study: Study, points: Sequence[dict[str, Any]], across: Axis, up: Axis) -> list[dict[str, Any]]:
    """Where each arm lies, and whether another one certainly beats it at no more cost."""
    # With fewer seeds nothing is certain.
    judged = len(study.seeds) >= MIN_SEEDS
    return [
        {
            **beside(Truncator(point["name"]).chars(24), across.share(point["cost"])),
            "x": across.across(point["cost"]),
            "y": up.down(point["mean"], PARETO_HEIGHT),
            **up.upright(point["low"], point["high"], PARETO_HEIGHT),
            "words": with_interval(study, point),
            "is_dominated": judged
            and any(dominates(other, point, study.lower_is_better) for other in points),
        }
        for point in points
    ]


def _band(study: Study, tied: Sequence[dict[str, Any]], up: Axis) -> dict[str, Any]:
    """One group for all arms that cannot be told apart from the reference."""
    places = [up.down(point["mean"], PARETO_HEIGHT) for point in tied]
    return {
        "top": min(places) - 8,
        "height": max(places) - min(places) + 16,
        "names": ", ".join(
            Truncator(point["name"]).chars(24) for point in tied if point["name"] != study.reference
        ),
    }


def tied_with_reference(study: Study) -> set[str]:
    """The reference and the arms whose difference to it may be nothing."""
    found = study.result.get("comparisons", [])
    return {study.reference} | {one["arm"] for one in found if one["low"] <= 0 <= one["high"]}


def dominates(other: dict[str, Any], point: dict[str, Any], lower_is_better: bool) -> bool:
    """Whether `other` costs no more and its whole interval lies on the good side of the point's."""
    if other["cost"] > point["cost"]:
        return False
    return bool(other["high"] < point["low"] if lower_is_better else other["low"] > point["high"])


def beside(name: str, share: float) -> dict[str, Any]:
    """A name next to its mark, and the part of the width that it covers at most."""
    # A name beside a mark on the right would leave the figure.
    is_left = share > 0.6
    width = LETTER * len(name)
    return {
        "name": name,
        "is_left": is_left,
        "span": (share - width, share) if is_left else (share, share + width),
    }


def apart(marks: list[dict[str, Any]], bottom: float = math.inf) -> list[dict[str, Any]]:
    """A height for each name, so that none covers another one or leaves the figure."""
    placed: list[dict[str, Any]] = []
    for mark in sorted(marks, key=lambda mark: mark["y"]):
        above = [other["label_y"] for other in placed if meet(mark, other)]
        mark["label_y"] = round(max([mark["y"], *(y + LABEL_HEIGHT for y in above)]), 1)
        placed.append(mark)
    for place, mark in reversed(list(enumerate(placed))):
        below = [other["label_y"] for other in placed[place + 1 :] if meet(mark, other)]
        roof = min([bottom, *(y - LABEL_HEIGHT for y in below)])
        mark["label_y"] = min(mark["label_y"], round(roof, 1))
    return marks


def meet(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two names may share a part of the width."""
    return bool(one["span"][0] < other["span"][1] and other["span"][0] < one["span"][1])


def validation_curves(study: Study) -> dict[str, Any] | None:
    """Held-out loss while learning: each arm's mean over its seeds, in a band from lowest to highest."""
    bands = [(arm.name, band_of([run.pk for run in arm.final_runs()])) for arm in study.arms.all()]
    bands = [(name, band) for name, band in bands if len(band) > 1]
    if not bands:
        return None
    steps = Axis.around(step for _name, band in bands for step, *_values in band)
    losses = Axis.around(value for _name, band in bands for _step, *values in band for value in values)
    room = CURVES_HEIGHT - AXIS_HEIGHT

    def down(value: float) -> float:
        return round(LABEL_HEIGHT + (room - LABEL_HEIGHT) * (1 - losses.share(value)), 1)

    def point(step: float, value: float) -> str:
        return f"{1000 * steps.share(step):.1f},{down(value)}"

    lines: list[dict[str, Any]] = [
        {
            "name": Truncator(name).chars(20),
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
            "span": (0, 1),
        }
        for place, (name, band) in enumerate(bands)
    ]
    return {
        "lines": apart(lines, room - 6),
        "ticks_x": [(f"{10 + 66 * steps.share(value):.2f}%", f"{value:g}") for value in steps.ticks()],
        "ticks_y": [(down(value), f"{value:g}") for value in losses.ticks()],
        "floor": room,
        "height": CURVES_HEIGHT,
    }


def band_of(run_ids: Sequence[int]) -> list[tuple[int, float, float, float]]:
    """(step, mean, lowest, highest) at the steps that every run has."""
    stored = MetricSeries.objects.filter(run__in=run_ids, name="validation/loss").prefetch_related("chunks")
    curves = [dict(series.points()) for series in stored]
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    found = []
    for step in shared:
        values = [curve[step] for curve in curves if math.isfinite(curve[step])]
        if len(values) == len(curves):
            found.append((step, sum(values) / len(values), min(values), max(values)))
    kept = {step for step, _value in thin([(step, mean) for step, mean, _low, _high in found], 200)}
    return [one for one in found if one[0] in kept]
