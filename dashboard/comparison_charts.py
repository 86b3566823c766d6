"""A comparison of chosen runs as pictures: places for plain SVG, in the shapes of a study's figures."""

from __future__ import annotations

from typing import Any

from django.utils.text import Truncator
from django.utils.translation import gettext as _

from dashboard import axes
from dashboard.axes import AXIS_HEIGHT, Axis, Span, around_spans, axis_of, places_of
from dashboard.models.comparison import ComparedArm, Comparison
from dashboard.models.comparison_words import OUTCOMES
from dashboard.models.study_result import costs_of_runs
from dashboard.models.study_words import amount, interval
from dashboard.study_charts import (
    COSTS,
    PARETO_HEIGHT,
    ROW_HEIGHT,
    apart,
    beside,
    dominates,
    ends_in_words,
    is_cut,
    tick,
    with_interval,
)


def short(name: str, length: int) -> str:
    """A name that fits, with the number that tells runs of one name apart."""
    words, _space, number = name.rpartition(" ")
    return f"{Truncator(words).chars(length)} {number}"


def config_of(arm: ComparedArm) -> str:
    """What the arm trains, where its name does not say so already."""
    label = str(arm.first.target_module_config.name)
    return "" if label.lower() in arm.name.lower() else label


def intervals(comparison: Comparison) -> dict[str, Any] | None:
    """Every arm and base model with mean, 95 % interval and seeds, by mean: the order decides nothing."""
    arms = {arm.name: arm for arm in comparison.scored}
    lines = [
        {**one["metric"], "name": one["name"], "arm": arms[one["name"]], "seeds": one["by_seed"]}
        for one in comparison.numbers["arms"]
    ]
    if not lines:
        return None
    lines.sort(key=lambda line: line["mean"], reverse=not comparison.lower_is_better)
    bases = comparison.numbers["bases"]
    lines += [{**found, "name": name, "arm": None, "seeds": []} for name, found in bases.items()]
    axis = axis_of(lines)
    rows = [
        {
            "name": short(line["name"], 28) if line["arm"] else _("Base model"),
            "config": config_of(line["arm"]) if line["arm"] else (line["name"] if len(bases) > 1 else ""),
            "is_base": line["arm"] is None,
            "is_reference": line["arm"] is comparison.reference,
            "words": with_interval(comparison, line),
            **places_of(line, axis),
            **ends_in_words(comparison, line),
            "y": ROW_HEIGHT * place,
        }
        for place, line in enumerate(lines)
    ]
    pinned = next((line["mean"] for line in lines if line["arm"] is comparison.reference), None)
    height = ROW_HEIGHT * len(rows)
    return {
        "rows": rows,
        "reference": axis.across(pinned) if pinned is not None else None,
        "is_base_outside": any(row["beyond"] for row in rows),
        "is_cut": any(is_cut(row) for row in rows),
        "ticks": [(axis.across(value), tick(comparison, value)) for value in axis.ticks()],
        "floor": height + 2,
        "height": height + AXIS_HEIGHT,
    }


def pareto(comparison: Comparison, cost: str) -> dict[str, Any] | None:
    """Quality against a cost; grey are arms that another certainly beats at no more cost. None: no costs."""
    arms = {arm.name: arm for arm in comparison.scored}
    points: list[dict[str, Any]] = []
    for one in comparison.numbers["arms"]:
        value = costs_of_runs(arms[one["name"]].runs)[cost]
        if value is not None:
            points.append({"name": one["name"], "cost": float(value), **one["metric"]})
    if not points:
        return None
    across = Axis.around((point["cost"] for point in points), zero=True)
    up = around_spans([Span(point["mean"], point["low"], point["high"]) for point in points])
    # With one seed an interval does not know how far seeds lie apart, so nothing is certain.
    counted = {one["name"]: len(one["seeds"]) for one in comparison.numbers["arms"]}
    certain = [point for point in points if counted[point["name"]] > 1]
    tied = tied_with_reference(comparison)
    together = [up.down(point["mean"], PARETO_HEIGHT) for point in points if point["name"] in tied]
    marks = [
        {
            **beside(short(point["name"], 18), across.share(point["cost"])),
            "x": across.across(point["cost"]),
            "y": up.down(point["mean"], PARETO_HEIGHT),
            **up.upright(point["low"], point["high"], PARETO_HEIGHT),
            "words": with_interval(comparison, point),
            "is_reference": point["name"] == comparison.reference.name,
            "is_dominated": point in certain
            and any(dominates(other, point, comparison.lower_is_better) for other in certain),
        }
        for point in sorted(points, key=lambda point: point["mean"])
    ]
    label, written = COSTS[cost]
    return {
        "cost": cost,
        "label": label,
        "marks": apart(marks),
        "tied": {"top": min(together) - 8, "height": max(together) - min(together) + 16}
        if len(together) > 1
        else None,
        "ticks_x": [(across.across(value), written(value)) for value in across.ticks()],
        "ticks_y": [(up.down(value, PARETO_HEIGHT), tick(comparison, value)) for value in up.ticks(5)],
        "has_dominated": any(mark["is_dominated"] for mark in marks),
        "cut": [mark for mark in marks if is_cut(mark)],
        "floor": PARETO_HEIGHT - AXIS_HEIGHT,
        "height": PARETO_HEIGHT,
    }


def tied_with_reference(comparison: Comparison) -> set[str]:
    """The reference and the arms whose difference to it may be nothing."""
    found = comparison.numbers.get("comparisons", [])
    return {comparison.reference.name} | {one["arm"] for one in found if one["low"] <= 0 <= one["high"]}


def differences(comparison: Comparison) -> dict[str, Any]:
    """Arm -> its difference to the reference on a shared axis that marks no difference."""
    return axes.differences(comparison.numbers.get("comparisons", []))


def deltas(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per arm: its difference to the reference in words, and what it costs; unscored arms stay."""
    found = {one["name"]: one for one in comparison.numbers["arms"]}
    compared = {one["arm"]: one for one in comparison.numbers.get("comparisons", [])}
    places = differences(comparison)["rows"]
    rows = []
    for arm in comparison.arms:
        one, own = compared.get(arm.name), found.get(arm.name)
        rows.append(
            {
                "arm": arm,
                "is_reference": arm is comparison.reference,
                "may_pin": own is not None and arm is not comparison.reference,
                "config": config_of(arm),
                "quality": with_interval(comparison, own["metric"]) if own else "–",
                "seeds": len(own["seeds"]) if own else 0,
                "difference": amount(comparison, one["difference"], signed=True) if one else "",
                "interval": interval(comparison, one) if one else "",
                "p": p_in_words(one["p_adjusted"]) if one else "",
                "outcome": OUTCOMES[one["outcome"]] if one else "",
                "place": places.get(arm.name),
                **costs_of_runs(arm.runs),
            }
        )
    return rows


def p_in_words(p: float) -> str:
    """Three digits, as fewer draws cannot tell smaller ones apart."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
