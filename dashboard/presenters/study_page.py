"""The values that show a study's result on its page, in its report and on the Compare page. Knows no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.utils.translation import gettext as _

from dashboard.charts import forgetting_charts, study_charts
from dashboard.charts.study_charts import COSTS
from dashboard.models import Job, State, Study
from dashboard.models.evaluations.forgetting import Forgetting
from dashboard.models.jobs.compute_use import used_seconds
from dashboard.models.studies.results.comparison import UnsavedStudy
from dashboard.models.studies.results.result import AnyArm, ArmComparison, base_ms_per_token, costs_of
from dashboard.models.studies.results.text import (
    format_difference,
    format_estimate,
    format_interval,
    format_metric,
    format_p_value,
    outcome_label,
    verdict_sentence,
)


@dataclass(frozen=True)
class ResultPage:
    """A result as figures, tables and sentences; `cost` is what the second figure compares quality with."""

    study: Study | UnsavedStudy
    forgotten: dict[str, Forgetting]  # by the arm's name
    cost: str = ""

    def context(self) -> dict[str, Any]:
        """Return what the templates read."""
        cost = self.cost if self.cost in self.costs else next(iter(self.costs), "")
        runs = [run for arm in self.study.arm_list for run in arm.final_runs()]
        return {
            "sentence": verdict_sentence(self.study),
            "intervals": study_charts.intervals(self.study),
            "costs": self.costs,
            "cost": cost,
            "pareto": study_charts.pareto(self.study, cost) if cost else None,
            "deltas": self.deltas(),
            "differences": study_charts.differences(self.study),
            "base_ms_per_token": base_ms_per_token(runs) if len(self.study.result.bases) == 1 else None,
            "forgetting": forgetting_charts.table(self.forgotten),
            "forgotten": forgetting_charts.plots(self.study, self.forgotten),
        }

    @cached_property
    def costs(self) -> dict[str, Any]:
        """Return the costs that were measured for an arm at least."""
        measured = [costs_of(arm.final_runs()) for arm in self.study.arm_list]
        return {
            name: cost for name, cost in COSTS.items() if any(costs[name] is not None for costs in measured)
        }

    def deltas(self) -> list[dict[str, Any]]:
        """Return one row per arm, failed ones too: difference to the reference in words, and costs."""
        places = study_charts.differences(self.study)["rows"]
        return [{**self._delta(arm), "place": places.get(arm.position)} for arm in self.study.arm_list]

    def _delta(self, arm: AnyArm) -> dict[str, Any]:
        study, result = self.study, self.study.result
        own, one = result.of_arm(arm), result.comparison_of(arm)
        return {
            "arm": arm,
            "config": arm.target_module_label,
            "is_reference": arm.position == study.reference_arm.position,
            "was_stopped": not own and any(run.outcome == State.CANCELLED for run in arm.final_runs()),
            "has_result": own is not None,
            "quality": format_estimate(study, own.metric) if own else "–",
            "seeds": len(own.seeds) if own else 0,
            "difference": format_difference(study, one.difference, signed=True) if one else "",
            "interval": format_interval(study, one) if one else "",
            "p": format_p_value(one.p_adjusted) if one else "",
            "outcome": outcome_label(one) if one else "",
            "kept": kept_gain(one),
            **costs_of(arm.final_runs()),
        }


def kept_gain(comparison: ArmComparison | None) -> dict[str, str] | None:
    """Return the share of the reference's gain over the base model that an arm kept; None without a gain."""
    if comparison is None or comparison.kept is None:
        return None
    share = {end: 100 * getattr(comparison.kept, end) for end in ("mean", "low", "high")}
    return {"mean": _("%(mean).0f %%") % share, "interval": _("(%(low).0f to %(high).0f %%)") % share}


def by_seed(study: Study) -> list[dict[str, Any]]:
    """Return every arm's mean for each of the study's seeds."""
    return [
        {
            "name": arm.name,
            "values": [
                format_metric(study, arm.by_seed[arm.seeds.index(seed)]) if seed in arm.seeds else "–"
                for seed in study.seeds
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
