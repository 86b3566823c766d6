"""The result of a study: the numbers behind its verdict, computed from the scores of single test rows.

`result_of` reads evaluations and computes. The result is stored as JSON, and can be computed again from the
study's export with numpy alone. `verdict_sentence` beside it puts it into words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from dashboard.models.catalog.metrics import is_lower_better
from dashboard.models.studies.results.scores import (
    ArmScores,
    RowScores,
    SeedScores,
    clusters_of,
    common_rows,
    groups_of,
    matrix,
    scores_of,
)
from workers.statistics import power, verdicts
from workers.statistics.looks import ALPHA
from workers.statistics.variance import Sample, ScoreModel
from workers.statistics.verdicts import Estimate, Verdict

if TYPE_CHECKING:
    from dashboard.models.studies.results.comparison import ChosenArm, UnsavedStudy
    from dashboard.models.studies.study import Study
    from dashboard.models.studies.study_arm import StudyArm
    from dashboard.models.training.training_run import TrainingRun

# Figures besides the metric by which arms can be compared.
COSTS = ("trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "ms_per_token")

# A saved study and its arms, or the unsaved study of chosen runs, which has no margin.
AnyArm: TypeAlias = "StudyArm | ChosenArm"
AnyStudy: TypeAlias = "Study | UnsavedStudy"


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
        looks=study.looks,
        stopped=stopped_arms(study),
    )
    return dataclasses.replace(result, test_sha256=study.dataset_version.test_sha256)


def compare_study(study: Study) -> dict[int, Verdict]:
    """Return position -> verdict of a saved study's arms, from the scores that there are so far."""
    arms, base = scores_of(study)
    present = [arm for arm in arms if arm.by_seed]
    rows, reference = common_rows(present, [base] if base else []), study.reference_arm.position
    if not rows or reference not in {arm.position for arm in present}:
        return {}
    sign = -1.0 if study.lower_is_better else 1.0
    return verdicts.compare_arms(
        {arm.position: _sample(arm.by_seed, rows, sign) for arm in present},
        reference,
        study.margin,
        clusters_of(rows, groups_of(study)),
        is_share=not study.lower_is_better,
        looks=study.looks,
        stopped=stopped_arms(study),
    )


def stopped_arms(study: Study) -> dict[int, Verdict]:
    """Return position -> verdict of the arms that got no further seeds after the look that decided them."""
    return {arm.position: Verdict.from_dict(arm.verdict) for arm in study.arm_list if arm.verdict}


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
    looks: Sequence[Sequence[int]] = (),
    stopped: Mapping[int, Verdict] | None = None,
) -> StudyResult:
    """Estimate every arm and base model on `rows`, and compare the arms with the one at `reference`.

    `groups`: row -> its group. `base`: scores over which the gain is measured. `looks` and
    `stopped` as for `verdicts.compare_arms`. Means keep the metric's unit.
    """
    clusters = clusters_of(rows, groups)
    is_share = not is_lower_better(metric)
    samples = {arm.position: _sample(arm.by_seed, rows) for arm in arms}
    model = ScoreModel(samples, clusters, is_share=is_share)
    comparisons = _comparisons(
        arms,
        base,
        rows,
        clusters,
        reference=reference,
        is_share=is_share,
        margin=margin,
        looks=looks,
        stopped=stopped,
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
    looks: Sequence[Sequence[int]],
    stopped: Mapping[int, Verdict] | None,
) -> list[ArmComparison]:
    """Compare every arm with the reference on the seeds that both have."""
    other = next((arm for arm in arms if arm.position == reference), None)
    if other is None:
        return []
    sign = 1.0 if is_share else -1.0
    pairs = {arm.position: _paired_by_seed(arm.by_seed, other.by_seed, margin is not None) for arm in arms}
    samples = {position: _sample(by_seed, rows, sign) for position, (by_seed, _) in pairs.items()}
    decided = verdicts.compare_arms(
        samples, reference, margin, clusters, is_share=is_share, looks=looks, stopped=stopped
    )
    model = ScoreModel(samples, clusters, is_share=is_share)
    base_scores = sign * matrix([base], rows)[0] if base else None
    compared = []
    for arm in arms:
        if not (verdict := decided.get(arm.position)):
            continue
        found, seeds = verdict.difference, verdict.difference.seeds
        # Adapters of a stopped arm may have been deleted with their scores since its look.
        present = [
            seed for seed in seeds if all(seed in samples[one].seeds for one in (arm.position, reference))
        ]
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
                kept=verdicts.kept_gain(model, arm.position, reference, base_scores, present)
                if base_scores is not None and present
                else None,
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
