"""The result of a study: the numbers behind its verdict, computed from the scores of single test rows.

`result_of` reads evaluations and computes. The result is stored as JSON, and can be computed again from the
study's export with numpy alone. `verdict_sentence` beside it puts it into words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dashboard.models.catalog.metrics import is_lower_better
from dashboard.models.evaluations.evaluation import Evaluation, EvaluationItem
from workers.statistics import power, verdicts
from workers.statistics.looks import ALPHA
from workers.statistics.variance import Sample, ScoreModel, Scores
from workers.statistics.verdicts import Estimate

if TYPE_CHECKING:
    from dashboard.models.studies.results.comparison import ChosenArm, UnsavedStudy
    from dashboard.models.studies.study import Study
    from dashboard.models.studies.study_arm import StudyArm
    from dashboard.models.training.training_run import TrainingRun

# Figures besides the metric by which arms can be compared.
COSTS = ("trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "ms_per_token")
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
    """An arm's mean with its interval, and the mean of each seed.

    `is_unsteady`: its seeds differ more than those of the other arms, so its interval is its own.
    """

    position: int
    name: str
    seeds: list[int]
    by_seed: list[float]
    metric: Estimate
    is_unsteady: bool = False


@dataclass(frozen=True)
class ArmComparison:
    """Arm minus reference in the metric's unit, positive when the arm is better.

    `look`: the one that decided it, or else the last. `p_adjusted` and `p_margin_adjusted`, against no
    difference and against a loss of the margin, count as significant below `alpha`, the level of that look.
    `kept`: the share of the reference's gain over the base model. `paired`: whether the seeds are shared.
    `further_seeds`: those that decide an open arm with 80 % probability; None if none do. `seeds_disagree`:
    seeds add more to the interval than rows do.
    """

    position: int
    arm: str
    reference: str
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float
    p_margin_adjusted: float
    alpha: float
    look: int
    outcome: str
    seeds: list[int]
    seeds_disagree: bool
    further_seeds: int | None
    kept: Estimate | None
    paired: bool = True

    @property
    def is_indicative(self) -> bool:
        """Return whether it has too few seeds, rows or groups for a verdict."""
        return self.outcome == verdicts.INDICATIVE_ONLY

    @property
    def is_open(self) -> bool:
        """Return whether further seeds may decide it."""
        return self.outcome == verdicts.NOT_ENOUGH_EVIDENCE

    @property
    def is_certainly_worse(self) -> bool:
        """Return whether it is below the reference, by however little."""
        return self.high < 0 and self.p_adjusted < self.alpha


@dataclass(frozen=True)
class StudyResult:
    """Base models, arms and comparisons; without arms nothing came to a result.

    `items`: test rows that every arm was scored on. `most_items`: those of the arm with the most.
    `recommended`: the name of the recommended arm, or "". `certain_pairs`: [better, worse], the positions of
    any two arms of which one is certainly better, after Holm over all pairs.
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
    certain_pairs: list[list[int]] = field(default_factory=list)

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
    samples = {arm.position: _sample(arm.by_seed, rows) for arm in arms}
    model = ScoreModel(samples, clusters, is_share=is_share)
    comparisons = _comparisons(
        arms, base, rows, clusters, reference=reference, is_share=is_share, margin=margin
    )
    alpha = min((one.alpha for one in comparisons), default=ALPHA)
    return StudyResult(
        metric=metric,
        items=len(rows),
        most_items=max(len(scores) for arm in arms for scores in arm.by_seed.values()),
        groups=model.groups.count,
        bases={
            name: _within(
                verdicts.estimate_items(matrix([scores], rows), clusters, is_share=is_share), is_share
            )
            for name, scores in bases.items()
        },
        arms=[
            ArmResult(
                position=arm.position,
                name=arm.name,
                seeds=list(arm.by_seed),
                by_seed=samples[arm.position].means.tolist(),
                metric=_within(verdicts.estimate(model, arm.position), is_share),
                is_unsteady=arm.position in model.unsteady,
            )
            for arm in arms
        ],
        comparisons=comparisons,
        certain_pairs=[
            list(pair) if is_share else [pair[1], pair[0]] for pair in verdicts.certain_pairs(model, alpha)
        ],
    )


def _sample(by_seed: SeedScores, rows: Sequence[int], sign: float = 1.0) -> Sample:
    return Sample(tuple(by_seed), sign * matrix(list(by_seed.values()), rows))


def _comparisons(
    arms: Sequence[ArmScores],
    base: RowScores | None,
    rows: Sequence[int],
    clusters: list[int] | None,
    *,
    reference: int,
    is_share: bool,
    margin: float | None,
) -> list[ArmComparison]:
    """Compare every arm with the reference on the seeds that both have."""
    other = next((arm for arm in arms if arm.position == reference), None)
    if other is None:
        return []
    sign = 1.0 if is_share else -1.0
    pairs = {arm.position: _paired_by_seed(arm.by_seed, other.by_seed, margin is not None) for arm in arms}
    samples = {position: _sample(by_seed, rows, sign) for position, (by_seed, _) in pairs.items()}
    decided = verdicts.compare_arms(samples, reference, margin, clusters, is_share=is_share)
    model = ScoreModel(samples, clusters, is_share=is_share)
    base_scores = sign * matrix([base], rows)[0] if base else None
    compared = []
    for arm in arms:
        if not (verdict := decided.get(arm.position)):
            continue
        found, seeds = verdict.difference, verdict.difference.seeds
        compared.append(
            ArmComparison(
                position=arm.position,
                arm=arm.name,
                reference=other.name,
                difference=found.mean,
                low=found.low,
                high=found.high,
                p=found.p,
                p_adjusted=verdict.p_adjusted,
                p_margin_adjusted=verdict.p_margin_adjusted,
                alpha=found.alpha,
                look=found.look,
                outcome=verdict.outcome,
                seeds=list(seeds),
                seeds_disagree=found.contrast.seed_variance > found.contrast.item_variance,
                further_seeds=None
                if verdict.outcome in verdicts.DECIDED
                else power.seeds_to_decide(found, margin),
                kept=None
                if base_scores is None
                else verdicts.kept_gain(model, arm.position, reference, base_scores, seeds),
                paired=pairs[arm.position][1],
            )
        )
    return compared


def _paired_by_seed(ours: SeedScores, theirs: SeedScores, has_margin: bool) -> tuple[SeedScores, bool]:
    """Pair chosen runs that share no seed with the reference in the order of seeds: valid, but less sharp."""
    if has_margin or ours.keys() & theirs.keys():
        return ours, True
    in_order = zip(sorted(theirs), (ours[seed] for seed in sorted(ours)), strict=False)
    return dict(in_order), False


# Scores of single rows


def scores_of(study: Study) -> tuple[list[ArmScores], dict[int, float]]:
    """Return the metric's value of every row: of each arm by seed, and of the base model."""
    by_arm: dict[int, dict[int, dict[int, float]]] = {arm.pk: {} for arm in study.arms.all()}
    base: dict[int, float] = {}
    for evaluation in Evaluation.objects.of_study(study).select_related("run__study_arm").order_by("pk"):
        items = EvaluationItem.objects.filter(evaluation=evaluation).values_list("row", "scores")
        # A score that was no finite number is stored as null.
        values = {
            row: float(scores[study.metric]) for row, scores in items if scores.get(study.metric) is not None
        }
        if evaluation.subject == Evaluation.Subject.BASE:
            base = values
        elif values and evaluation.run.study_arm_id:
            by_arm[evaluation.run.study_arm_id][evaluation.run.seed] = values
    # In the plan's order, in which looks take the seeds, and not in that of jobs.
    arms = [
        ArmScores(
            arm.position,
            arm.name,
            {seed: by_arm[arm.pk][seed] for seed in study.seeds if seed in by_arm[arm.pk]},
        )
        for arm in study.arms.all()
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


def matrix(values: Sequence[RowScores], rows: Sequence[int]) -> Scores:
    """Return scores as an array of shape [seeds, rows]."""
    return np.array([[scores[row] for row in rows] for scores in values], dtype=np.float64)


def _within(estimate: Estimate, is_share: bool) -> Estimate:
    """Keep the interval of a share between 0 and 1."""
    if not is_share:
        return estimate
    return Estimate(estimate.mean, max(0.0, estimate.low), min(1.0, estimate.high))


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
