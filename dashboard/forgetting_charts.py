"""What adapters forget, as rows of a table and as two figures against the metric.

Pure functions from rows to plain values, in the shapes of a study's figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.axes import AXIS_HEIGHT, LABEL_HEIGHT, Span, around_spans
from dashboard.models.forgetting import Forgetting
from dashboard.models.study_words import Judged
from dashboard.study_charts import PARETO_HEIGHT, apart, beside, tick

NOT_MEASURED = "–"
# Figure -> (label, what stands on which side of the base model).
FIGURES = {
    "loss": (
        gettext_lazy("Rise of the loss on general text"),
        gettext_lazy("The further right of the line, the more of what the base model knew is lost."),
    ),
    "questions": (
        gettext_lazy("Change of general questions answered right"),
        gettext_lazy("Left of the line fewer are answered right than by the base model."),
    ),
}


def table(found: Mapping[str, Forgetting]) -> dict[str, Any] | None:
    """The base model and every arm in words, and what has to be said of them. None: nothing was measured."""
    known = {name: one for name, one in found.items() if one.losses or one.accuracy is not None}
    if not known:
        return None
    # Runs that were scored alone have an evaluation of the same base model each, mostly with the same result.
    bases = {
        (one.base.base_model_id, one.base_loss, one.base_accuracy): one for one in known.values() if one.base
    }
    return {
        "bases": [
            {
                "name": str(one.base.base_model) if one.base and len(bases) > 1 else "",
                "loss": _loss(one.base_loss),
                "right": _share(one.base_accuracy),
            }
            for one in bases.values()
        ],
        "rows": [{"arm": name, **_row(one)} for name, one in known.items()],
        "questions": max(one.questions for one in known.values()),
        "seeds": max(len(one.tuned) for one in known.values()),
        "guesses": [
            _("%(right)d of %(questions)d") % {"right": _right(one), "questions": one.questions}
            for one in bases.values()
            if one.base_guesses
        ],
        "not_asked": [name for name, one in known.items() if one.accuracy is None],
    }


def _row(one: Forgetting) -> dict[str, str]:
    change = one.change()
    return {
        "loss": _loss(one.loss),
        "rise": _loss(one.rise, signed=True),
        "spread": f"{min(one.rises):+.3f} – {max(one.rises):+.3f}" if len(one.rises) > 1 else "",
        "right": _share(one.accuracy),
        "change": _("%(points)+.1f points") % {"points": 100 * change["mean"]} if change else NOT_MEASURED,
        "interval": _("95 %% interval %(low)+.1f to %(high)+.1f")
        % {end: 100 * change[end] for end in ("low", "high")}
        if change
        else "",
    }


def _loss(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return NOT_MEASURED
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def _right(one: Forgetting) -> int:
    return round((one.base_accuracy or 0.0) * one.questions)


def plots(
    judged: Judged, found: Mapping[str, Forgetting], metrics: Mapping[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """The metric upwards against each measure of what is forgotten; a figure without points is left out."""
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in FIGURES}
    for name, metric in metrics.items():
        one = found.get(name)
        if one and one.rise is not None:
            ends = {"least": min(one.rises), "most": max(one.rises)}
            points["loss"].append({"name": name, "x": one.rise, **ends, **metric})
        change = one.change() if one else None
        if change:
            ends = {"least": 100 * change["low"], "most": 100 * change["high"]}
            points["questions"].append({"name": name, "x": 100 * change["mean"], **ends, **metric})
    return [_plot(judged, name, of) for name, of in points.items() if of]


def _plot(judged: Judged, name: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    across = around_spans([Span(point["x"], point["least"], point["most"]) for point in points], marks=[0.0])
    up = around_spans([Span(point["mean"], point["low"], point["high"]) for point in points])
    marks = [
        {
            **beside(Truncator(point["name"]).chars(24), across.share(point["x"])),
            "x": across.across(point["x"]),
            "y": up.down(point["mean"], PARETO_HEIGHT),
            "across": across.whisker(point["least"], point["most"]),
            "up": up.upright(point["low"], point["high"], PARETO_HEIGHT),
        }
        for point in points
    ]
    label, reading = FIGURES[name]
    return {
        "name": name,
        "label": label,
        "reading": reading,
        "marks": apart(marks, PARETO_HEIGHT - AXIS_HEIGHT - LABEL_HEIGHT),
        "is_cut": any(end for mark in marks for side in ("across", "up") for end in cut_ends(mark[side])),
        "zero": across.across(0.0),
        "ticks_x": [(across.across(value), f"{value:+g}" if value else "0") for value in across.ticks()],
        "ticks_y": [(up.down(value, PARETO_HEIGHT), tick(judged, value)) for value in up.ticks(5)],
        "floor": PARETO_HEIGHT - AXIS_HEIGHT,
        "height": PARETO_HEIGHT,
    }


def cut_ends(whisker: Mapping[str, Any]) -> tuple[bool, bool]:
    """Which ends of an interval lie outside of the picture."""
    return whisker["is_low_cut"], whisker["is_high_cut"]
