"""The verdict sentence of a study, saved or not, and the words for its numbers.

Arms that overlap are not ranked, and fewer than three seeds give no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from dashboard.models.studies.results.result import WORSE, AnyArm, AnyStudy, ArmComparison
from workers.statistics import verdicts
from workers.statistics.verdicts import Estimate

OUTCOMES = {
    verdicts.BETTER: gettext_lazy("Better"),
    verdicts.NOT_INFERIOR: gettext_lazy("As good within your margin"),
    verdicts.INFERIOR: gettext_lazy("Worse"),
    WORSE: gettext_lazy("Worse"),
    verdicts.NOT_ENOUGH_EVIDENCE: gettext_lazy("Not enough evidence"),
    verdicts.INDICATIVE_ONLY: gettext_lazy("Indicative only"),
}


def outcome_label(comparison: ArmComparison) -> str:
    """Return the outcome of one arm; without enough evidence, whether it is certainly worse."""
    certainly_worse = comparison.high < 0 and comparison.p_adjusted < 1 - verdicts.LEVEL
    if comparison.outcome == verdicts.NOT_ENOUGH_EVIDENCE and certainly_worse:
        return _("Worse; whether within your margin is open")
    return str(OUTCOMES[comparison.outcome])


def verdict_sentence(study: AnyStudy) -> str:
    """Return the verdict sentence, or the reason why there is none."""
    result, reference = study.result, study.reference_arm
    if not result.arms:
        if study.margin is None:
            return _("No test row was scored for all of these runs, so they cannot be compared.")
        return _("No arm of this study has a result, so there is no verdict.")
    if result.of_arm(reference) is None:
        return _("The reference, %(name)s, has no result, so the other arms cannot be compared with it.") % {
            "name": reference.name
        }
    if not result.comparisons:
        return _("Only %(name)s has a result, so there is nothing to compare.") % {"name": reference.name}
    if all(comparison.is_indicative for comparison in result.comparisons):
        return _indicative(study)
    if study.margin is None:
        return _without_margin(study)
    best = best_comparison(study)
    return _recommendation(study, best) if best else _no_recommendation(study, study.margin)


def best_comparison(study: AnyStudy) -> ArmComparison | None:
    """Return the comparison of the recommended arm: the smallest that is certainly better, or as good."""
    sizes = {arm.position: parameters_of(arm) for arm in study.arm_list}
    for outcome in (verdicts.BETTER, verdicts.NOT_INFERIOR):
        good = [one for one in study.result.comparisons if one.outcome == outcome]
        # As good is a reason to prefer an arm only where it is also smaller than the reference.
        if outcome == verdicts.NOT_INFERIOR:
            good = [one for one in good if sizes[one.position] < sizes[study.reference_arm.position]]
        if good:
            return min(good, key=lambda one: sizes[one.position])
    return None


def recommended_arm(study: AnyStudy) -> str:
    """Return the name of the recommended arm, or "" if there is none."""
    if best := best_comparison(study):
        return best.arm
    comparisons = study.result.comparisons
    all_worse = comparisons and all(one.outcome == verdicts.INFERIOR for one in comparisons)
    return study.reference_arm.name if all_worse else ""


def parameters_of(arm: AnyArm) -> int:
    """Return the number of trainable parameters; 0 before its first run."""
    runs = arm.final_runs()
    return int(runs[0].forecast.get("trainable_parameters", 0)) if runs else 0


def _recommendation(study: AnyStudy, best: ArmComparison) -> str:
    arm = next(arm for arm in study.arm_list if arm.position == best.position)
    values = {
        "arm": best.arm,
        "reference": best.reference,
        "share": parameter_share(parameters_of(arm), parameters_of(study.reference_arm)),
        "difference": format_difference(study, best.difference),
        "interval": format_interval(study, best),
        "margin": format_difference(study, study.margin or 0.0),
    }
    if best.outcome == verdicts.BETTER:
        text = _("%(arm)s is better than %(reference)s by %(difference)s (%(interval)s), with %(share)s.")
    elif best.kept:
        values["kept"] = _("%(mean).0f %% of the gain (interval %(low).0f to %(high).0f %%)") % {
            end: 100 * getattr(best.kept, end) for end in ("mean", "low", "high")
        }
        text = _(
            "%(arm)s kept %(kept)s of %(reference)s with %(share)s: as good within your margin of %(margin)s."
        )
    else:
        text = _(
            "%(arm)s is as good as %(reference)s within your margin of %(margin)s (%(interval)s), "
            "with %(share)s."
        )
    return text % values


def _no_recommendation(study: AnyStudy, margin: float) -> str:
    comparisons = study.result.comparisons
    values = {"reference": study.reference_arm.name, "margin": format_difference(study, margin)}
    if all(one.outcome == verdicts.INFERIOR for one in comparisons):
        text = _("Every other arm is worse than %(reference)s by more than your margin of %(margin)s.")
        return text % values
    if all(one.outcome == verdicts.NOT_INFERIOR for one in comparisons):
        text = _(
            "All arms are as good as %(reference)s within your margin of %(margin)s; it is the smallest."
        )
        return text % values
    if count := advised_seeds(study):
        advice = ngettext(
            "%(count)d more seed would probably decide.", "%(count)d more seeds would probably decide.", count
        ) % {"count": count}
    else:
        advice = _("More test rows would help more than more seeds.")
    return f"{_('Not enough evidence to say how the arms compare with %(reference)s.') % values} {advice}"


def _without_margin(study: AnyStudy) -> str:
    """Name every arm that is certainly better or worse than the reference, and those that are not."""
    parts = []
    for one in study.result.comparisons:
        values = {
            "arm": one.arm,
            "reference": one.reference,
            "difference": format_difference(study, abs(one.difference)),
            "interval": format_interval(study, one),
        }
        if one.outcome == verdicts.BETTER:
            text = _("%(arm)s is better than %(reference)s by %(difference)s (%(interval)s).")
        elif one.outcome == WORSE:
            text = _("%(arm)s is worse than %(reference)s by %(difference)s (%(interval)s).")
        else:
            continue
        parts.append(text % values)
    unsure = [one.arm for one in study.result.comparisons if one.outcome == verdicts.NOT_ENOUGH_EVIDENCE]
    if unsure:
        text = _("Not enough evidence to tell %(arms)s from %(reference)s.")
        parts.append(text % {"arms": ", ".join(unsure), "reference": study.reference_arm.name})
    if few := too_few_seeds(study.result.comparisons):
        parts.append(few)
    return " ".join(parts)


def _indicative(study: AnyStudy) -> str:
    """Return what may be said of too few seeds: a number, and that it decides nothing."""
    comparisons = study.result.comparisons
    highest = max(comparisons, key=lambda one: one.difference)
    values = {
        "arm": highest.arm,
        "position": _relative_position(study, highest),
        "interval": format_interval(study, highest),
    }
    statement = (
        _("of the other arms %(arm)s comes out first, %(position)s (%(interval)s).")
        if len(comparisons) > 1
        else _("%(arm)s comes out %(position)s (%(interval)s).")
    ) % values
    seeds = max(len(one.seeds) for one in comparisons)
    return ngettext(
        "Indicative only, with %(count)d seed: %(statement)s Three seeds are needed for a verdict.",
        "Indicative only, with %(count)d seeds: %(statement)s Three seeds are needed for a verdict.",
        seeds,
    ) % {"count": seeds, "statement": statement}


def too_few_seeds(comparisons: Sequence[ArmComparison]) -> str:
    """Name the arms with too few seeds for a verdict, beside others that have enough; "" for none."""
    names = [one.arm for one in comparisons if one.is_indicative]
    if not names or len(names) == len(comparisons):
        return ""
    return _("Fewer than three seeds, so indicative only: %(arms)s.") % {"arms": ", ".join(names)}


def _relative_position(study: AnyStudy, comparison: ArmComparison) -> str:
    """Return where an arm stands next to the reference: 2.8 points behind Quality."""
    difference = comparison.difference
    values = {"difference": format_difference(study, abs(difference)), "reference": comparison.reference}
    if not difference:
        return _("level with %(reference)s") % values
    if difference > 0:
        return _("%(difference)s ahead of %(reference)s") % values
    return _("%(difference)s behind %(reference)s") % values


def advised_seeds(study: AnyStudy) -> int | None:
    """Return how many further seeds would probably decide every open comparison; None if seeds cannot."""
    missing = [
        max(verdicts.MIN_SEEDS, one.seeds_needed or 0) - len(one.seeds)
        for one in study.result.comparisons
        if one.is_indicative or (one.outcome == verdicts.NOT_ENOUGH_EVIDENCE and one.seeds_needed)
    ]
    return max(missing, default=0) or None


def format_difference(study: AnyStudy, value: float, *, signed: bool = False) -> str:
    """Return a difference in the metric's unit: points of a hundred, or nats of a loss."""
    if study.lower_is_better:
        return _("%(value)s nats") % {"value": f"{value:+.3f}" if signed else f"{value:.3f}"}
    points = 100 * value
    text = f"{points:+.1f}" if signed else f"{points:.1f}".removesuffix(".0")
    return ngettext("%(value)s point", "%(value)s points", 1 if text == "1" else 2) % {"value": text}


def format_interval(study: AnyStudy, comparison: ArmComparison) -> str:
    scale, digits = (1.0, 3) if study.lower_is_better else (100.0, 1)
    return _("95 %% interval %(low)s to %(high)s") % {
        "low": f"{scale * comparison.low:+.{digits}f}",
        "high": f"{scale * comparison.high:+.{digits}f}",
    }


def format_metric(study: AnyStudy, value: float) -> str:
    """Return a value of the metric: percent of a share, or the number of a loss."""
    return f"{value:.3f}" if study.lower_is_better else f"{100 * value:.1f} %"


def format_estimate(study: AnyStudy, estimate: Estimate) -> str:
    mean, low, high = (format_metric(study, value) for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} ({low} – {high})"


def format_p_value(p: float) -> str:
    """Return p with three digits: the draws cannot tell smaller values apart."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def parameter_share(size: int, reference: int) -> str:
    """Return how many parameters an arm has, against the reference: "a tenth of the parameters"."""
    ratio = size / reference if reference else 1.0
    for parts, words in (
        (2, _("half the parameters")),
        (3, _("a third of the parameters")),
        (4, _("a quarter of the parameters")),
        (5, _("a fifth of the parameters")),
        (10, _("a tenth of the parameters")),
    ):
        if abs(ratio * parts - 1) < 0.1:
            return str(words)
    if abs(ratio - 1) < 0.05:
        return _("as many parameters")
    return _("%(percent)s %% of the parameters") % {"percent": f"{100 * ratio:.0f}"}
