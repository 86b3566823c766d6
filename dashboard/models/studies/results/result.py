"""The result of a study: the numbers behind its verdict, computed from the scores of single test rows.

`result_of` reads evaluations and computes. The result is stored as JSON, and can be computed again from the
study's export with numpy alone. `verdict_sentence` beside it puts it into words.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dashboard.models.catalog.metrics import is_lower_better
from dashboard.models.evaluations.evaluation import Evaluation, EvaluationItem
from workers.statistics import verdicts
from workers.statistics.verdicts import Estimate

if TYPE_CHECKING:
    from dashboard.models.studies.results.comparison import ChosenArm, UnsavedStudy
    from dashboard.models.studies.study import Study
    from dashboard.models.studies.study_arm import StudyArm
    from dashboard.models.training.training_run import TrainingRun

# Figures besides the metric by which arms can be compared.
COSTS = ("trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "ms_per_token")
# Outcomes without a margin fixed before the start; `workers.statistics.verdicts` has those with one.
BETTER, WORSE = verdicts.BETTER, "worse"

# Row -> score, and seed -> row -> score.
RowScores = Mapping[int, float]
SeedScores = Mapping[int, RowScores]


# A saved study and its arms, or the unsaved study of chosen runs, which has no margin.
AnyArm: TypeAlias = "StudyArm | ChosenArm"
AnyStudy: TypeAlias = "Study | UnsavedStudy"


@dataclass(frozen=True)
class ArmScores:
    """The metric's value of every test row that an arm was scored on, by seed."""

    position: int
    name: str
    by_seed: SeedScores


@dataclass(frozen=True)
class ArmResult:
    """An arm's mean with its interval, and the mean of each seed."""

    position: int
    name: str
    seeds: list[int]
    by_seed: list[float]
    metric: Estimate


@dataclass(frozen=True)
class ArmComparison:
    """Arm minus reference in the metric's unit, positive when the arm is better.

    `kept`: the share of the reference's gain over the base model. `paired`: whether the seeds are shared.
    """

    position: int
    arm: str
    reference: str
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float
    outcome: str
    seeds: list[int]
    seeds_disagree: bool
    seeds_needed: int | None
    kept: Estimate | None
    paired: bool = True

    @property
    def is_indicative(self) -> bool:
        """Return whether it has too few seeds for a verdict."""
        return self.outcome == verdicts.INDICATIVE_ONLY


@dataclass(frozen=True)
class StudyResult:
    """Base models, arms and comparisons; without arms nothing came to a result.

    `items`: test rows that every arm was scored on. `most_items`: those of the arm with the most.
    `recommended`: the name of the recommended arm, or "".
    """

    metric: str = ""
    items: int = 0
    most_items: int = 0
    groups: int = 0
    test_sha256: str = ""
    bases: dict[str, Estimate] = field(default_factory=dict)
    arms: list[ArmResult] = field(default_factory=list)
    comparisons: list[ArmComparison] = field(default_factory=list)
    recommended: str = ""

    @property
    def base(self) -> Estimate | None:
        """Return the estimate of the first base model; a saved study has one."""
        return next(iter(self.bases.values()), None)

    def of_arm(self, arm: AnyArm) -> ArmResult | None:
        """Return an arm's result, or None if it has none."""
        return next((result for result in self.arms if result.position == arm.position), None)

    def comparison_of(self, arm: AnyArm) -> ArmComparison | None:
        """Return an arm's comparison with the reference, or None."""
        return next((one for one in self.comparisons if one.position == arm.position), None)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> StudyResult:
        """Build it from what `to_dict` returned; an empty mapping stands for no result yet."""
        return cls(
            **{
                **stored,
                "bases": {name: Estimate(**base) for name, base in stored.get("bases", {}).items()},
                "arms": [
                    ArmResult(**{**arm, "metric": Estimate(**arm["metric"])})
                    for arm in stored.get("arms", [])
                ],
                "comparisons": [
                    ArmComparison(**{**one, "kept": Estimate(**one["kept"]) if one["kept"] else None})
                    for one in stored.get("comparisons", [])
                ],
            }
        )


def result_of(study: Study) -> StudyResult:
    """Compute the result of a saved study from the scores that its arms share with its base model."""
    arms, base = scores_of(study)
    present = [arm for arm in arms if arm.by_seed]
    rows = common_rows(present, [base] if base else [])
    if not present or not rows:
        return StudyResult(metric=study.metric)
    result = compute_result(
        present,
        {str(study.base_model): base} if base else {},
        rows,
        groups_of(study),
        reference=study.reference_arm.position,
        metric=study.metric,
        margin=study.margin,
        base=base,
    )
    return dataclasses.replace(result, test_sha256=study.dataset_version.test_sha256)


def compute_result(
    arms: Sequence[ArmScores],
    bases: Mapping[str, RowScores],
    rows: Sequence[int],
    groups: Mapping[int, int],
    *,
    reference: int,
    metric: str,
    margin: float | None,
    base: RowScores | None = None,
) -> StudyResult:
    """Estimate every arm and base model on `rows`, and compare the arms with the one at `reference`.

    `groups`: row -> its group. `base`: scores over which the gain is measured. Means keep the metric's unit.
    """
    clusters = clusters_of(rows, groups)
    is_share = not is_lower_better(metric)
    return StudyResult(
        metric=metric,
        items=len(rows),
        most_items=max(len(scores) for arm in arms for scores in arm.by_seed.values()),
        groups=len(set(clusters)) if clusters else len(rows),
        bases={
            name: _estimate(matrix([scores], rows), clusters, is_share=is_share)
            for name, scores in bases.items()
        },
        arms=[
            ArmResult(
                position=arm.position,
                name=arm.name,
                seeds=sorted(arm.by_seed),
                by_seed=[
                    float(np.mean([arm.by_seed[seed][row] for row in rows])) for seed in sorted(arm.by_seed)
                ],
                metric=_estimate(
                    matrix([arm.by_seed[seed] for seed in sorted(arm.by_seed)], rows),
                    clusters,
                    is_share=is_share,
                ),
            )
            for arm in arms
        ],
        comparisons=_comparisons(
            arms, base, rows, clusters, reference=reference, sign=1.0 if is_share else -1.0, margin=margin
        ),
    )


def _comparisons(
    arms: Sequence[ArmScores],
    base: RowScores | None,
    rows: Sequence[int],
    clusters: list[int] | None,
    *,
    reference: int,
    sign: float,
    margin: float | None,
) -> list[ArmComparison]:
    """Compare every arm with the reference on the seeds that both have; adjust p-values over the arms."""
    other = next((arm for arm in arms if arm.position == reference), None)
    if other is None:
        return []
    compared = []
    for arm in arms:
        by_seed, paired = _paired_by_seed(arm.by_seed, other.by_seed, has_margin=margin is not None)
        seeds = sorted(by_seed.keys() & other.by_seed.keys())
        if arm is other or not seeds:
            continue
        ours = sign * matrix([by_seed[seed] for seed in seeds], rows)
        theirs = sign * matrix([other.by_seed[seed] for seed in seeds], rows)
        difference = verdicts.compare(ours, theirs, clusters)
        kept = verdicts.kept_gain(ours, theirs, sign * matrix([base], rows), clusters) if base else None
        compared.append((arm, seeds, difference, kept, paired))
    adjusted = verdicts.holm([difference.p for _arm, _seeds, difference, *_more in compared])
    return [
        ArmComparison(
            position=arm.position,
            arm=arm.name,
            reference=other.name,
            difference=difference.difference,
            low=difference.low,
            high=difference.high,
            p=difference.p,
            p_adjusted=p_adjusted,
            outcome=_outcome(difference, p_adjusted, margin),
            seeds=seeds,
            seeds_disagree=difference.seeds_disagree,
            seeds_needed=verdicts.seeds_needed(difference, margin or 0.0),
            kept=kept,
            paired=paired,
        )
        for (arm, seeds, difference, kept, paired), p_adjusted in zip(compared, adjusted, strict=True)
    ]


def _paired_by_seed(ours: SeedScores, theirs: SeedScores, *, has_margin: bool) -> tuple[SeedScores, bool]:
    """Pair chosen runs that share no seed with the reference in the order of seeds: valid, but less sharp."""
    if has_margin or ours.keys() & theirs.keys():
        return ours, True
    in_order = zip(sorted(theirs), (ours[seed] for seed in sorted(ours)), strict=False)
    return dict(in_order), False


def _outcome(compared: verdicts.Comparison, p_adjusted: float, margin: float | None) -> str:
    """Return what may be said; without a margin nothing is ever called as good as the reference."""
    if margin is not None:
        return verdicts.outcome(compared, p_adjusted, margin)
    if compared.seeds < verdicts.MIN_SEEDS:
        return verdicts.INDICATIVE_ONLY
    if p_adjusted < 1 - verdicts.LEVEL:
        return BETTER if compared.difference > 0 else WORSE
    return verdicts.NOT_ENOUGH_EVIDENCE


# Scores of single rows


def scores_of(study: Study) -> tuple[list[ArmScores], dict[int, float]]:
    """Return the metric's value of every row: of each arm by seed, and of the base model."""
    by_arm: dict[int, dict[int, dict[int, float]]] = {arm.pk: {} for arm in study.arms.all()}
    base: dict[int, float] = {}
    for evaluation in Evaluation.objects.of_study(study).select_related("run__study_arm").order_by("pk"):
        items = EvaluationItem.objects.filter(evaluation=evaluation).values_list("row", "scores")
        values = {row: float(scores[study.metric]) for row, scores in items if study.metric in scores}
        if evaluation.subject == Evaluation.Subject.BASE:
            base = values
        elif values and evaluation.run.study_arm_id:
            by_arm[evaluation.run.study_arm_id][evaluation.run.seed] = values
    # By seed and not by time, so that an export does not depend on the order of jobs.
    arms = [
        ArmScores(arm.position, arm.name, dict(sorted(by_arm[arm.pk].items()))) for arm in study.arms.all()
    ]
    return arms, base


def groups_of(study: Study) -> dict[int, int]:
    """Return row -> group, from the newest evaluation."""
    return EvaluationItem.objects.groups_of(Evaluation.objects.of_study(study).order_by("-pk").first())


def clusters_of(rows: Sequence[int], groups: Mapping[int, int]) -> list[int] | None:
    """Return the group of each row, for draws that take a group as a whole; None if no two rows share one."""
    clusters = [groups.get(row, row) for row in rows]
    return clusters if len(set(clusters)) < len(clusters) else None


def common_rows(arms: Sequence[ArmScores], bases: Sequence[RowScores]) -> list[int]:
    """Return the rows that all were scored on, so that every pair compares the same items."""
    sets = [set(scores) for arm in arms for scores in arm.by_seed.values()]
    sets += [set(base) for base in bases]
    return sorted(set.intersection(*sets)) if sets else []


def matrix(values: Sequence[RowScores], rows: Sequence[int]) -> verdicts.Scores:
    """Return scores as an array of shape [seeds, rows]."""
    return np.array([[scores[row] for row in rows] for scores in values], dtype=np.float64)


def _estimate(scores: verdicts.Scores, clusters: list[int] | None, *, is_share: bool) -> Estimate:
    """Return mean and interval; the interval of a share stays between 0 and 1."""
    estimate = verdicts.estimate(scores, clusters)
    least, most = (0.0, 1.0) if is_share else (-math.inf, math.inf)
    return Estimate(estimate.mean, max(least, estimate.low), min(most, estimate.high))


# Costs


def costs_of(runs: Sequence[TrainingRun]) -> dict[str, Any]:
    """Return what an arm costs: size of its adapter, the rest as means over its runs; None where unknown."""
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
    """Return milliseconds per token without an adapter: the mean of the probes taken beside these runs'."""
    return _mean(run.scores().get("adapter", {}).get("base_ms_per_token") for run in runs)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
