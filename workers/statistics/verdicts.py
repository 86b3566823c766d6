"""Verdicts of a study: differences between arms, their intervals, and what may be said of them.

Differences are arm minus reference in the metric's own unit, higher is better. Knows nothing of rows, runs or
words; `variance` has the formulas of the standard error, `looks` the levels where a study is looked at
several times. An interval is d +- t * sqrt(V), and every p-value comes from the same t.

Two families of hypotheses are each kept at 5 % over all arms and all looks by Holm's step-down method: "equal
to the reference" (two-sided, for "better") and "worse than the reference by the margin or more" (one-sided,
for "as good"). "As good" needs the arm's interval above -margin besides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workers.statistics.distributions import binomial_tail, t_probability, t_quantile
from workers.statistics.looks import ALPHA, level_at, look_sizes
from workers.statistics.variance import Contrast, Sample, ScoreModel, Scores

# With fewer seeds their spread is a guess; with fewer groups or items that of the items is.
MIN_SEEDS, MIN_GROUPS, MIN_ITEMS = 3, 5, 20
BETTER, NOT_INFERIOR, INFERIOR = "better", "not_inferior", "inferior"
# Without a margin: certainly below the reference.
WORSE = "worse"
NOT_ENOUGH_EVIDENCE, INDICATIVE_ONLY = "not_enough_evidence", "indicative_only"
DECIDED = {BETTER, NOT_INFERIOR, INFERIOR, WORSE}


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """An arm minus the reference over the seeds that both have, with its interval `low` to `high`.

    `variances`: those of the estimate at every look so far, or empty if it is looked at once only.
    """

    contrast: Contrast
    seeds: tuple[int, ...]
    items: int
    groups: int
    variances: tuple[float, ...] = ()

    @property
    def look(self) -> int:
        return max(1, len(self.variances))

    @property
    def alpha(self) -> float:
        """Return the two-sided level of this look."""
        return level_at(self.variances) if self.variances else ALPHA

    @property
    def mean(self) -> float:
        return self.contrast.mean

    @property
    def reach(self) -> float:
        """Return half the width of the interval."""
        return t_quantile(self.contrast.freedom, 1 - self.alpha / 2) * self.contrast.error

    @property
    def low(self) -> float:
        return self.mean - self.reach

    @property
    def high(self) -> float:
        return self.mean + self.reach

    @property
    def p(self) -> float:
        """Return the two-sided p-value of "equal to the reference"."""
        return 2 * min(self.p_above(0.0), 1 - self.p_above(0.0))

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of "not above `bound`"."""
        distance = self.mean - bound
        if self.contrast.error == 0.0:
            return 0.5 if distance == 0.0 else float(distance < 0)
        return t_probability(self.contrast.freedom, -distance / self.contrast.error)

    @property
    def is_indicative(self) -> bool:
        """Return whether it rests on too few seeds, groups or items for a verdict."""
        return len(self.seeds) < MIN_SEEDS or self.groups < MIN_GROUPS or self.items < MIN_ITEMS


@dataclass(frozen=True)
class Verdict:
    """A difference with its outcome, at the look that decided it or else at the last one.

    `p_adjusted`, `p_margin_adjusted`: two-sided against no difference, one-sided against the margin, both
    after Holm. Compare them with `difference.alpha`.
    """

    difference: Difference
    p_adjusted: float
    p_margin_adjusted: float
    outcome: str

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Verdict:
        """Build it from what `dataclasses.asdict` returned, read back from JSON."""
        difference = dict(stored["difference"])
        difference["contrast"] = Contrast(**difference["contrast"])
        difference |= {name: tuple(difference[name]) for name in ("seeds", "variances")}
        return cls(**{**stored, "difference": Difference(**difference)})

    @property
    def is_final(self) -> bool:
        """Return whether further seeds cannot change it; an arm as good as the reference may prove better."""
        return self.outcome in DECIDED - {NOT_INFERIOR}

    @property
    def needs_no_seeds(self) -> bool:
        """Return whether it is decided for the study's purpose: final, or as good without being ahead."""
        return self.is_final or (self.outcome == NOT_INFERIOR and self.difference.mean <= 0)


def compare(model: ScoreModel, arm: int, reference: int) -> Difference | None:
    """Compare two arms on the seeds that both have; None if they share none."""
    seeds = tuple(one for one in model.arms[reference].seeds if one in model.arms[arm].seeds)
    if not seeds:
        return None
    contrast = model.contrast({arm: 1.0, reference: -1.0}, seeds=seeds)
    return Difference(contrast, seeds, model.items, model.groups.count)


def estimate(model: ScoreModel, arm: int) -> Estimate:
    """Return an arm's own mean with its interval."""
    contrast = model.contrast({arm: 1.0})
    reach = t_quantile(contrast.freedom, 1 - ALPHA / 2) * contrast.error
    return Estimate(contrast.mean, contrast.mean - reach, contrast.mean + reach)


def estimate_items(
    scores: Scores, clusters: Sequence[int] | None = None, *, is_share: bool = True
) -> Estimate:
    """Return the mean of scores of shape [seeds, items] with its interval; one row is the base model's."""
    sample = Sample(tuple(range(len(scores))), np.asarray(scores, dtype=np.float64))
    return estimate(ScoreModel({0: sample}, clusters, is_share=is_share), 0)


def kept_gain(
    model: ScoreModel, arm: int, reference: int, base: Scores, seeds: Sequence[int]
) -> Estimate | None:
    """Return the share of the reference's gain over the base model that the arm keeps; 1.0 is all of it.

    `base`: the base model's scores of shape [items]; `seeds`: those that both arms have. The interval follows
    from that of arm - share * reference - (1 - share) * base, divided by the gain (delta method). None unless
    the gain is certainly above 0: a ratio to something near 0 says nothing.
    """
    gain = model.contrast({reference: 1.0}, -base, seeds)
    if gain.mean <= t_quantile(gain.freedom, 1 - ALPHA / 2) * gain.error:
        return None
    share = model.contrast({arm: 1.0}, -base, seeds).mean / gain.mean
    rest = model.contrast({arm: 1.0, reference: -share}, -(1 - share) * base, seeds)
    reach = t_quantile(rest.freedom, 1 - ALPHA / 2) * rest.error / gain.mean
    return Estimate(share, share - reach, share + reach)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method (Scand. J. Statistics 6, 1979); keep their order."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def certain_pairs(model: ScoreModel, alpha: float) -> list[tuple[int, int]]:
    """Return (better, worse) of any two arms that certainly differ at `alpha`, after Holm over all pairs."""
    pairs = [
        (one, other, difference)
        for one, other in itertools.combinations(model.arms, 2)
        if (difference := compare(model, one, other)) and not difference.is_indicative
    ]
    adjusted = holm([difference.p for _one, _other, difference in pairs])
    return [
        (one, other) if difference.mean > 0 else (other, one)
        for (one, other, difference), p in zip(pairs, adjusted, strict=True)
        if p < alpha
    ]


def compare_arms(
    samples: Mapping[int, Sample],
    reference: int,
    margin: float | None,
    clusters: Sequence[int] | None = None,
    *,
    is_share: bool = True,
    looks: Sequence[Sequence[int]] = (),
    stopped: Mapping[int, Verdict] | None = None,
) -> dict[int, Verdict]:
    """Return the verdict of every arm (position -> scores) that shares a seed with the reference.

    `margin`: what still counts as good, fixed before the start. None: chosen runs, looked at once; no arm is
    called as good. With a margin the study is decided look after look: first with 3 seeds, then with 5, 7 and
    so on, at last with all. A decision stands, whatever later seeds show, because looking again until an arm
    passes would pass too many; but an arm that is as good may still turn out to be better.

    `looks`: the seeds at each look, without which they are those of the reference. `stopped`: the verdicts of
    arms that got no further seeds after a look. They stand even if scores that came later change that look.
    """
    order = samples[reference].seeds
    verdicts: dict[int, Verdict] = {}
    sizes = look_sizes(len(order)) if margin is not None else [len(order)]
    for seeds in looks or [order[:size] for size in sizes]:
        seen = _seen(samples, seeds)
        if reference not in seen:
            continue
        model = ScoreModel(seen, clusters, is_share=is_share)
        differences = {position: verdict.difference for position, verdict in verdicts.items()}
        for position in model.arms:
            if position == reference or (position in verdicts and verdicts[position].is_final):
                continue
            difference = compare(model, position, reference)
            before = differences.get(position)
            # An arm that has no further seed is not looked at again.
            if not difference or (before and before.seeds == difference.seeds):
                continue
            if margin is not None:
                variances = (*(before.variances if before else ()), difference.contrast.variance)
                difference = replace(difference, variances=variances)
            differences[position] = difference
        verdicts = _look(differences, verdicts, margin)
        for position, verdict in (stopped or {}).items():
            if set(verdict.difference.seeds) <= set(seeds):
                verdicts[position] = verdict
    return verdicts


def _seen(samples: Mapping[int, Sample], seeds: Sequence[int]) -> dict[int, Sample]:
    """Return the arms' scores at a look: of these seeds only."""
    shared = {one: [seed for seed in seeds if seed in sample.seeds] for one, sample in samples.items()}
    return {one: samples[one].of_seeds(own) for one, own in shared.items() if own}


def _look(
    differences: Mapping[int, Difference], earlier: Mapping[int, Verdict], margin: float | None
) -> dict[int, Verdict]:
    """Return the verdicts of one look. Holm's families count all arms; what was rejected stays rejected."""

    def adjusted(rejecting: set[str], p_of: Callable[[Difference], float]) -> list[float]:
        p_values = []
        for position, difference in differences.items():
            verdict = earlier.get(position)
            if verdict and verdict.outcome in rejecting:
                p_values.append(0.0)
            else:
                p_values.append(1.0 if verdict and verdict.is_final else p_of(difference))
        return holm(p_values)

    differs = adjusted({BETTER}, lambda one: one.p)
    loses_less = adjusted({BETTER, NOT_INFERIOR}, lambda one: one.p_above(-(margin or 0.0)))
    verdicts = {}
    for (position, difference), p, p_margin in zip(differences.items(), differs, loses_less, strict=True):
        before = earlier.get(position)
        verdict = Verdict(difference, p, p_margin, _outcome(difference, p, p_margin, margin))
        stands = before is not None and before.outcome in DECIDED and verdict.outcome != BETTER
        verdicts[position] = before if before is not None and stands else verdict
    return verdicts


def _outcome(difference: Difference, p: float, p_margin: float, margin: float | None) -> str:
    if difference.is_indicative:
        return INDICATIVE_ONLY
    if p < difference.alpha and difference.mean > 0:
        return BETTER
    if margin is None:
        return WORSE if p < difference.alpha else NOT_ENOUGH_EVIDENCE
    if difference.low > -margin and p_margin < difference.alpha:
        return NOT_INFERIOR
    return INFERIOR if difference.high < -margin else NOT_ENOUGH_EVIDENCE


def beats_chance(right: int, questions: int, choices: int) -> bool:
    """Return whether guessing among `choices` is that often right with a probability below 5 % (binomial)."""
    return binomial_tail(right - 1, questions, 1 / choices) < ALPHA
