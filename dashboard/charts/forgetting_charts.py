"""Forgetting as the rows of a table, and as two figures against the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.charts.axes import AXIS_HEIGHT, LABEL_HEIGHT, Span, around_spans
from dashboard.charts.study_charts import (
    PARETO_HEIGHT,
    key_of,
    place_numbers,
    tick,
)
from dashboard.models.evaluations.forgetting import Forgetting
from dashboard.models.studies.results.result import AnyStudy

NOT_MEASURED = "–"
# Figure -> (label, explanation).
FIGURES = {
    "loss": (
        gettext_lazy("Rise of the loss on general text"),
        gettext_lazy("The further right of the line, the more the adapter has forgotten."),
    ),
    "questions": (
        gettext_lazy("Change of the accuracy on general questions"),
        gettext_lazy("Left of the line the adapter answers fewer questions correctly than the base model."),
    ),
}


def table(arms: Mapping[str, Forgetting]) -> dict[str, Any] | None:
    """Return the rows of the arms and of the base model as texts; None if nothing was measured."""
    measured = {name: arm for name, arm in arms.items() if arm.losses or arm.accuracy is not None}
    if not measured:
        return None
    # Runs evaluated alone have an evaluation of the same base model each, mostly with equal results.
    bases = {
        (arm.base.base_model_id, arm.base_loss, arm.base_accuracy): arm
        for arm in measured.values()
        if arm.base
    }
    return {
        "bases": [
            {
                "name": str(arm.base.base_model) if arm.base and len(bases) > 1 else "",
                "loss": _loss_text(arm.base_loss),
                "right": _percent(arm.base_accuracy),
            }
            for arm in bases.values()
        ],
        "rows": [{"arm": name, **_row(arm)} for name, arm in measured.items()],
        "questions": max(arm.questions for arm in measured.values()),
        "seeds": max(len(arm.adapters) for arm in measured.values()),
        "guesses": [
            _("%(right)d of %(questions)d")
            % {"right": round((arm.base_accuracy or 0.0) * arm.questions), "questions": arm.questions}
            for arm in bases.values()
            if arm.is_base_guessing
        ],
    }


def _row(arm: Forgetting) -> dict[str, str]:
    row = {
        "loss": _loss_text(arm.loss),
        "rise": _loss_text(arm.rise, sign="+"),
        "spread": f"{min(arm.rises):+.3f} – {max(arm.rises):+.3f}" if len(arm.rises) > 1 else "",
        "right": _percent(arm.accuracy),
        "change": NOT_MEASURED,
        "interval": "",
    }
    if change := arm.change():
        points = {end: 100 * value for end, value in change.items()}
        row["change"] = _("%(mean)+.1f points") % points
        row["interval"] = _("95 %% interval %(low)+.1f to %(high)+.1f") % points
    return row


def _loss_text(value: float | None, *, sign: str = "") -> str:
    return NOT_MEASURED if value is None else f"{value:{sign}.3f}"


def _percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def plots(study: AnyStudy, arms: Mapping[str, Forgetting]) -> list[dict[str, Any]]:
    """Return the figures of the metric over each measure of forgetting; one without points is left out."""
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in FIGURES}
    for own in study.result.arms:
        arm, metric = arms.get(own.name), asdict(own.metric)
        named = {"name": own.name, "position": own.position}
        if arm and arm.rise is not None:
            ends = {"least": min(arm.rises), "most": max(arm.rises)}
            points["loss"].append({**named, "x": arm.rise, **ends, **metric})
        if arm and (change := arm.change()):
            ends = {"least": 100 * change["low"], "most": 100 * change["high"]}
            points["questions"].append({**named, "x": 100 * change["mean"], **ends, **metric})
    return [_plot(study, name, arm_points) for name, arm_points in points.items() if arm_points]


def _plot(study: AnyStudy, name: str, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    across = around_spans([Span(point["x"], point["least"], point["most"]) for point in points], marks=[0.0])
    up = around_spans([Span(point["mean"], point["low"], point["high"]) for point in points])
    marks = [
        {
            "number": point["position"] + 1,
            "name": point["name"],
            "share": across.share(point["x"]),
            "x": across.across(point["x"]),
            "y": up.down(point["mean"], PARETO_HEIGHT),
            "across": across.whisker(point["least"], point["most"]),
            "up": up.upright(point["low"], point["high"], PARETO_HEIGHT),
        }
        for point in points
    ]
    place_numbers(marks, PARETO_HEIGHT - AXIS_HEIGHT - LABEL_HEIGHT)
    label, explanation = FIGURES[name]
    return {
        "name": name,
        "label": label,
        "reading": explanation,
        "marks": marks,
        "is_cut": any(
            mark[side][end]
            for mark in marks
            for side in ("across", "up")
            for end in ("is_low_cut", "is_high_cut")
        ),
        "zero": across.across(0.0),
        "ticks_x": [(across.across(value), f"{value:+g}" if value else "0") for value in across.ticks()],
        "ticks_y": [(up.down(value, PARETO_HEIGHT), tick(study, value)) for value in up.ticks(5)],
        "floor": PARETO_HEIGHT - AXIS_HEIGHT,
        **key_of(marks, PARETO_HEIGHT),
    }
