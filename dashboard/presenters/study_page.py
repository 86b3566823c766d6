"""The values that show a study's result on its page, in its report and on the Compare page. Knows no HTTP."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _

from dashboard.charts import forgetting_charts, study_charts
from dashboard.charts.study_charts import COSTS
from dashboard.models import Job, State, Study
from dashboard.models.evaluations.forgetting import Forgetting
from dashboard.models.jobs.compute_use import used_seconds
from dashboard.models.studies.looks import look_sentence
from dashboard.models.studies.results.comparison import UnsavedStudy
from dashboard.models.studies.results.formats import (
    format_difference,
    format_estimate,
    format_interval,
    format_kept_gain,
    format_metric,
    format_p_value,
)
from dashboard.models.studies.results.result import (
    AnyArm,
    AnyStudy,
    base_ms_per_token,
    costs_of,
)
from dashboard.models.studies.results.verdict_sentence import outcome_label, verdict_parts


def result_figures(study: AnyStudy, forgotten: dict[str, Forgetting], cost: str = "") -> dict[str, Any]:
    """Return a result as figures, tables and sentences. The second figure compares quality with `cost`."""
    runs = [run for arm in study.arm_list for run in arm.final_runs()]
    arm_costs = [costs_of(arm.final_runs()) for arm in study.arm_list]
    costs = {name: texts for name, texts in COSTS.items() if any(one[name] is not None for one in arm_costs)}
    cost = cost if cost in costs else next(iter(costs), "")
    return {
        "verdict": verdict_parts(study),
        "look": "" if isinstance(study, UnsavedStudy) else look_sentence(study),
        "intervals": study_charts.intervals(study),
        "costs": costs,
        "pareto": study_charts.pareto(study, cost) if cost else None,
        "deltas": deltas(study),
        "differences": study_charts.differences(study),
        "base_ms_per_token": base_ms_per_token(runs) if len(study.result.bases) == 1 else None,
        "forgetting": forgetting_charts.table(forgotten),
        "forgotten": forgetting_charts.plots(study, forgotten),
    }


def deltas(study: AnyStudy) -> list[dict[str, Any]]:
    """Return one row per arm, failed ones too: difference to the reference in words, and costs."""
    places = study_charts.differences(study)["rows"]
    return [{**_delta(study, arm), "place": places.get(arm.position)} for arm in study.arm_list]


def _delta(study: AnyStudy, arm: AnyArm) -> dict[str, Any]:
    own, one = study.result.of_arm(arm), study.result.comparison_of(arm)
    return {
        "arm": arm,
        "config": arm.target_module_label,
        "is_reference": arm.position == study.reference_arm.position,
        "was_stopped": not own and any(run.outcome == State.CANCELLED for run in arm.final_runs()),
        "has_result": own is not None,
        "quality": format_estimate(study, study_charts.shown_estimate(own)) if own else "–",
        "is_unsteady": own is not None and own.is_unsteady,
        "seeds": len(own.seeds) if own else 0,
        "difference": format_difference(study, one.difference, signed=True) if one else "",
        "interval": format_interval(study, one) if one and not one.is_indicative else "",
        "p": format_p_value(one.p_adjusted) if one and not one.is_indicative else "",
        "outcome": outcome_label(one) if one else "",
        "look": one.look if one and study.margin is not None else 0,
        "kept": format_kept_gain(study, one),
        **costs_of(arm.final_runs()),
    }


def by_seed(study: Study) -> list[dict[str, Any]]:
    """Return every arm's mean for each of the study's seeds."""
    return [
        {
            "name": arm.name,
            "values": [
                format_metric(study, arm.by_seed[arm.seeds.index(seed)]) if seed in arm.seeds else "–"
                for seed in study.begun_seeds
            ],
        }
        for arm in study.result.arms
    ]


def times_of(study: Study) -> list[dict[str, Any]]:
    """Return training and scoring: the forecast, and the seconds in which their jobs held devices."""
    parts = (
        ("training", _("Training"), Job.Kind.TRAIN),
        ("scoring", _("Scoring the test rows"), Job.Kind.EVALUATE),
    )
    return [
        {"label": label, "span": span, "measured": used_seconds(study.jobs().filter(kind=kind))}
        for part, label, kind in parts
        if (span := study.forecast.get(part)) and study.is_over
    ]
