"""The numbers of a study's verdict, from the scores of its items; no word of them is written here.

`result_of` reads rows and computes; everything it returns is plain JSON and can be recomputed from the
study's export with numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dashboard.models.evaluation import Evaluation, EvaluationItem
from workers import verdicts

if TYPE_CHECKING:
    from dashboard.models.study import Study
    from dashboard.models.study_arm import StudyArm
    from dashboard.models.training_run import TrainingRun

# What an arm can be compared by besides its metric.
COSTS = ("trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "ms_per_token")
# arm -> seed -> row -> score
Scores = dict[str, dict[int, dict[int, float]]]


def result_of(study: Study) -> dict[str, Any]:
    """Base, arms and comparisons with their intervals; `{"arms": []}` when nothing came through.

    Higher is better everywhere but in the arms' own means, which keep the metric's unit.
    """
    scores, base = scores_of(study)
    present = {name: seeds for name, seeds in scores.items() if seeds}
    rows = common_rows(present, base)
    if not present or not rows:
        return {"arms": []}
    sign = -1.0 if study.lower_is_better else 1.0
    is_share = not study.lower_is_better
    clusters = clusters_of(rows, groups_of(study))
    result: dict[str, Any] = {
        "metric": study.metric,
        "items": len(rows),
        "groups": len(set(clusters)) if clusters else len(rows),
        "test_sha256": study.dataset_version.test_sha256,
        "base": estimated(matrix([base], rows), clusters, is_share=is_share) if base else None,
        "arms": [
            {
                "name": name,
                "seeds": sorted(seeds),
                "by_seed": [float(np.mean([seeds[seed][row] for row in rows])) for seed in sorted(seeds)],
                "metric": estimated(
                    matrix([seeds[seed] for seed in sorted(seeds)], rows), clusters, is_share=is_share
                ),
            }
            for name, seeds in present.items()
        ],
    }
    result["comparisons"] = against(study.reference, present, base, rows, clusters, sign, study.margin)
    return result


def groups_of(study: Study) -> dict[int, int]:
    """Row -> its group; the newest evaluation tells, because the oldest may be from before groups."""
    return EvaluationItem.objects.groups_of(Evaluation.objects.of_study(study).order_by("-pk").first())


def clusters_of(rows: Sequence[int], groups: Mapping[int, int]) -> list[int] | None:
    """The group of each row, for draws that take a group as a whole; None where every row stands alone."""
    found = [groups.get(row, row) for row in rows]
    return found if len(set(found)) < len(found) else None


def scores_of(study: Study) -> tuple[Scores, dict[int, float]]:
    """The metric's value of every item: by arm and seed, and of the base model."""
    ended = Evaluation.objects.of_study(study).select_related("run__study_arm")
    scores: Scores = {arm.name: {} for arm in study.arms.all()}
    base: dict[int, float] = {}
    for evaluation in ended.order_by("pk"):
        values = {
            row: float(found[study.metric])
            for row, found in EvaluationItem.objects.filter(evaluation=evaluation).values_list(
                "row", "scores"
            )
            if study.metric in found
        }
        if evaluation.subject == Evaluation.Subject.BASE:
            base = values
        elif values and evaluation.run.study_arm:
            scores[evaluation.run.study_arm.name][evaluation.run.seed] = values
    # By seed, whichever was scored first: an export shall not depend on the order of jobs.
    return {name: dict(sorted(by_seed.items())) for name, by_seed in scores.items()}, base


def common_rows(scores: Scores, base: dict[int, float]) -> list[int]:
    """Rows that everybody was scored on, so that every pair compares the same items."""
    sets = [set(values) for seeds in scores.values() for values in seeds.values()]
    sets += [set(base)] if base else []
    return sorted(set.intersection(*sets)) if sets else []


def matrix(values: list[dict[int, float]], rows: list[int]) -> verdicts.Scores:
    """Scores as [seeds, items]."""
    return np.array([[one[row] for row in rows] for one in values], dtype=np.float64)


def estimated(scores: verdicts.Scores, clusters: list[int] | None, *, is_share: bool) -> dict[str, float]:
    """Mean and interval; that of a share ends where shares end."""
    found = verdicts.estimate(scores, clusters)
    least, most = (0.0, 1.0) if is_share else (-math.inf, math.inf)
    return {"mean": found.mean, "low": max(least, found.low), "high": min(most, found.high)}


def against(
    name_of_reference: str,
    scores: Scores,
    base: dict[int, float],
    rows: list[int],
    clusters: list[int] | None,
    sign: float,
    margin: float,
) -> list[dict[str, Any]]:
    """Every arm against the reference on the seeds that both have, p-values adjusted over the arms."""
    reference = scores.get(name_of_reference)
    if not reference:
        return []
    found = []
    for name, seeds in scores.items():
        shared = sorted(seeds.keys() & reference.keys())
        if name == name_of_reference or not shared:
            continue
        arm = sign * matrix([seeds[seed] for seed in shared], rows)
        other = sign * matrix([reference[seed] for seed in shared], rows)
        compared = verdicts.compare(arm, other, clusters)
        kept = verdicts.kept_gain(arm, other, sign * matrix([base], rows), clusters) if base else None
        found.append((name, shared, compared, kept))
    adjusted = verdicts.holm([compared.p for _name, _shared, compared, _kept in found])
    return [
        {
            "arm": name,
            "reference": name_of_reference,
            "difference": compared.difference,
            "low": compared.low,
            "high": compared.high,
            "p": compared.p,
            "p_adjusted": p,
            "outcome": verdicts.outcome(compared, p, margin),
            "seeds": shared,
            "seeds_disagree": compared.seeds_disagree,
            "seeds_needed": verdicts.seeds_needed(compared, margin),
            "kept": {"mean": kept.mean, "low": kept.low, "high": kept.high} if kept else None,
        }
        for (name, shared, compared, kept), p in zip(found, adjusted, strict=True)
    ]


def costs_of(arm: StudyArm) -> dict[str, Any]:
    """What an arm costs: parameters and bytes of its adapter, the rest as means over its runs."""
    return costs_of_runs(arm.final_runs())


def costs_of_runs(runs: Sequence[TrainingRun]) -> dict[str, Any]:
    """The same of runs that differ in nothing but the seed; those that have no such number say None."""
    if not runs:
        return dict.fromkeys(COSTS)
    sizes = [run.adapter.size_bytes for run in runs if hasattr(run, "adapter")]
    return {
        "trainable_parameters": runs[0].forecast.get("trainable_parameters"),
        "adapter_bytes": sizes[0] if sizes else runs[0].forecast.get("adapter_bytes"),
        "seconds": _mean(run.measured.get("seconds", run.measured.get("wall_seconds")) for run in runs),
        "peak_memory_bytes": _mean(run.measured.get("peak_memory_bytes") for run in runs),
        "ms_per_token": _mean(run.scores().get("adapter", {}).get("ms_per_token") for run in runs),
    }


def base_ms_per_token(runs: Iterable[TrainingRun]) -> float | None:
    """What a token takes without any adapter: the mean of the probes beside those of these runs' adapters."""
    return _mean(run.scores().get("adapter", {}).get("base_ms_per_token") for run in runs)


def _mean(values: Any) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
