"""The verdict sentence of a study, saved or not: first what is decided, arm by arm, then what is open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from dashboard.models.studies.results.formats import (
    SIZE_TOLERANCE,
    format_difference,
    format_interval,
    format_kept_gain,
    parameter_share,
)
from dashboard.models.studies.results.result import AnyArm, AnyStudy, ArmComparison
from workers.statistics import verdicts

OUTCOMES = {
    verdicts.BETTER: gettext_lazy("Better"),
    verdicts.NOT_INFERIOR: gettext_lazy("As good within your margin"),
    verdicts.INFERIOR: gettext_lazy("Worse"),
    verdicts.WORSE: gettext_lazy("Worse"),
    verdicts.NOT_ENOUGH_EVIDENCE: gettext_lazy("Not enough evidence"),
    verdicts.INDICATIVE_ONLY: gettext_lazy("Indicative only"),
}


def outcome_label(comparison: ArmComparison) -> str:
    """Return the outcome of one arm, and whether it is certainly worse although that decides nothing."""
    if comparison.is_open and comparison.is_certainly_worse:
        return _("Worse; whether within your margin is open")
    if comparison.outcome == verdicts.NOT_INFERIOR and comparison.is_certainly_worse:
        return _("As good within your margin, though certainly a little worse")
    return str(OUTCOMES[comparison.outcome])


def verdict_sentence(study: AnyStudy) -> str:
    """Return the verdict in one text, or the reason why there is none."""
    return " ".join(verdict_parts(study))


def verdict_parts(study: AnyStudy) -> list[str]:
    """Return the verdict in parts: the headline, what else is decided, what is open and would decide it."""
    result, reference = study.result, study.reference_arm
    if not result.arms:
        if study.margin is None:
            return [_("No test row was scored for all of these runs, so they cannot be compared.")]
        return [_("No arm of this study has a result, so there is no verdict.")]
    if result.of_arm(reference) is None:
        text = _("The reference, %(name)s, has no result, so the other arms cannot be compared with it.")
        return [text % {"name": reference.name}]
    if not result.comparisons:
        text = _("Only %(name)s has a result, so there is nothing to compare.")
        return [text % {"name": reference.name}]
    if all(comparison.is_indicative for comparison in result.comparisons):
        return [_indicative(study)]
    if study.margin is None:
        return _without_margin(study)
    best = best_comparison(study)
    others = [one for one in result.comparisons if not best or one.position != best.position]
    parts = [_headline(study, best), *_decided(study, others), *_open(study, others)]
    return [part for part in (*parts, too_few_seeds(result.comparisons), _lost(study)) if part]


def best_comparison(study: AnyStudy) -> ArmComparison | None:
    """Return the comparison of the recommended arm: the smallest that is certainly better, or as good.

    As good is a reason to prefer an arm only where it is also smaller than the reference. Of arms of equal
    size the one that is furthest ahead is taken.
    """
    sizes = {arm.position: parameters_of(arm) for arm in study.arm_list}
    limit = (1 - SIZE_TOLERANCE) * sizes[study.reference_arm.position]
    for outcome in (verdicts.BETTER, verdicts.NOT_INFERIOR):
        good = [one for one in study.result.comparisons if one.outcome == outcome]
        if outcome == verdicts.NOT_INFERIOR:
            good = [one for one in good if sizes[one.position] < limit]
        if good:
            smallest = min(sizes[one.position] for one in good)
            equal = [one for one in good if sizes[one.position] <= (1 + SIZE_TOLERANCE) * smallest]
            return max(equal, key=lambda one: one.difference)
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


def _headline(study: AnyStudy, best: ArmComparison | None) -> str:
    """Return the sentence of the recommended arm, or of all arms if they come out alike."""
    values = {"reference": study.reference_arm.name, "margin": format_difference(study, study.margin or 0.0)}
    if best:
        return _recommendation(study, best, values)
    outcomes = {one.outcome for one in study.result.comparisons}
    if outcomes == {verdicts.INFERIOR}:
        return (
            _("Every other arm is worse than %(reference)s by more than your margin of %(margin)s.") % values
        )
    if outcomes == {verdicts.NOT_INFERIOR}:
        text = _(
            "All arms are as good as %(reference)s within your margin of %(margin)s, and none is smaller."
        )
        return text % values
    if outcomes <= {verdicts.NOT_ENOUGH_EVIDENCE, verdicts.INDICATIVE_ONLY}:
        return _("Not enough evidence to say how the arms compare with %(reference)s.") % values
    text = _(
        "No arm can be recommended over %(reference)s: none is certainly better, and no smaller one is "
        "certainly as good within your margin of %(margin)s."
    )
    return text % values


def _recommendation(study: AnyStudy, best: ArmComparison, values: dict[str, str]) -> str:
    arm = next(arm for arm in study.arm_list if arm.position == best.position)
    values |= {
        "arm": best.arm,
        "share": parameter_share(parameters_of(arm), parameters_of(study.reference_arm)),
        "interval": format_interval(study, best),
        "kept": format_kept_gain(study, best),
    }
    if best.outcome == verdicts.BETTER:
        values["difference"] = format_difference(study, best.difference)
        text = _("%(arm)s is better than %(reference)s by %(difference)s (%(interval)s), with %(share)s.")
        return text % values
    values["difference"] = format_difference(study, best.difference, signed=True)
    parts = [
        _(
            "%(arm)s is as good as %(reference)s within your margin of %(margin)s, with %(share)s: "
            "difference %(difference)s (%(interval)s)."
        )
    ]
    if values["kept"]:
        parts.append(_("It keeps %(kept)s of the gain over the base model."))
    if best.is_certainly_worse:
        parts.append(_("It is certainly a little worse, but by less than the margin."))
    return " ".join(parts) % values


def _decided(study: AnyStudy, comparisons: Sequence[ArmComparison]) -> list[str]:
    """List the other decided arms by outcome, each with its difference and interval."""
    texts = {
        verdicts.BETTER: _("Also better: %(arms)s."),
        verdicts.NOT_INFERIOR: _("Also as good within the margin: %(arms)s.")
        if best_comparison(study)
        else _("As good within the margin: %(arms)s."),
        verdicts.INFERIOR: _("Worse by more than the margin: %(arms)s."),
    }
    return [
        text % {"arms": _with_differences(study, found)}
        for outcome, text in texts.items()
        if (found := [one for one in comparisons if one.outcome == outcome])
    ]


def _with_differences(study: AnyStudy, comparisons: Iterable[ArmComparison]) -> str:
    return "; ".join(
        _("%(arm)s, %(difference)s (%(interval)s)")
        % {
            "arm": one.arm,
            "difference": format_difference(study, one.difference, signed=True),
            "interval": format_interval(study, one),
        }
        for one in comparisons
    )


def _open(study: AnyStudy, comparisons: Sequence[ArmComparison]) -> list[str]:
    """List the arms that are not decided, and what would decide each of them."""
    still_open = [one for one in comparisons if one.is_open]
    if not still_open:
        return []
    parts = [_("Not decided: %(arms)s.") % {"arms": _with_differences(study, still_open)}]
    for count in sorted({one.further_seeds for one in still_open if one.further_seeds}):
        text = ngettext(
            "%(count)d more seed decides %(arms)s with a probability of at least 80 %%.",
            "%(count)d more seeds decide %(arms)s with a probability of at least 80 %%.",
            count,
        )
        names = [one.arm for one in still_open if one.further_seeds == count]
        parts.append(text % {"count": count, "arms": ", ".join(names)})
    rest = [one for one in still_open if not one.further_seeds]
    if few_rows := [one.arm for one in rest if not one.seeds_disagree]:
        text = _("More test rows would help %(arms)s more than more seeds.")
        parts.append(text % {"arms": ", ".join(few_rows)})
    if unclear := [one.arm for one in rest if one.seeds_disagree]:
        text = _("Even many more seeds would probably not decide %(arms)s at this margin.")
        parts.append(text % {"arms": ", ".join(unclear)})
    return parts


def _without_margin(study: AnyStudy) -> list[str]:
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
        elif one.outcome == verdicts.WORSE:
            text = _("%(arm)s is worse than %(reference)s by %(difference)s (%(interval)s).")
        else:
            continue
        parts.append(text % values)
    unsure = [one.arm for one in study.result.comparisons if one.is_open]
    if unsure:
        text = _("Not enough evidence to tell %(arms)s from %(reference)s.")
        parts.append(text % {"arms": ", ".join(unsure), "reference": study.reference_arm.name})
    if few := too_few_seeds(study.result.comparisons):
        parts.append(few)
    return parts


def _indicative(study: AnyStudy) -> str:
    """Return what may be said of too few seeds or rows: a number, and that it decides nothing."""
    comparisons = study.result.comparisons
    highest = max(comparisons, key=lambda one: one.difference)
    values = {"arm": highest.arm, "position": _relative_position(study, highest)}
    statement = (
        _("of the other arms %(arm)s comes out first, %(position)s.")
        if len(comparisons) > 1
        else _("%(arm)s comes out %(position)s.")
    ) % values
    seeds = max(len(one.seeds) for one in comparisons)
    if seeds < verdicts.MIN_SEEDS:
        return ngettext(
            "Indicative only, with %(count)d seed: %(statement)s Three seeds are needed for a verdict.",
            "Indicative only, with %(count)d seeds: %(statement)s Three seeds are needed for a verdict.",
            seeds,
        ) % {"count": seeds, "statement": statement}
    return _(
        "Indicative only, with %(rows)d test rows from %(groups)d groups: %(statement)s "
        "A verdict needs at least %(least_rows)d test rows from %(least_groups)d groups."
    ) % {
        "rows": study.result.items,
        "groups": study.result.groups,
        "statement": statement,
        "least_rows": verdicts.MIN_ITEMS,
        "least_groups": verdicts.MIN_GROUPS,
    }


def too_few_seeds(comparisons: Sequence[ArmComparison]) -> str:
    """Name the arms with too few seeds for a verdict, beside others that have enough; "" for none."""
    names = [one.arm for one in comparisons if one.is_indicative]
    if not names or len(names) == len(comparisons):
        return ""
    return _("Fewer than three seeds, so indicative only: %(arms)s.") % {"arms": ", ".join(names)}


def _lost(study: AnyStudy) -> str:
    """Name the arms of which no run came to a result."""
    names = [arm.name for arm in study.arm_list if study.result.of_arm(arm) is None]
    return _("No result: %(arms)s.") % {"arms": ", ".join(names)} if names else ""


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
    """Return how many further seeds decide open arms with 80 % probability; None if seeds cannot."""
    missing = [one.further_seeds for one in study.result.comparisons if one.is_open and one.further_seeds]
    missing += [
        verdicts.MIN_SEEDS - len(one.seeds)
        for one in study.result.comparisons
        if one.is_indicative and len(one.seeds) < verdicts.MIN_SEEDS
    ]
    return max(missing, default=0) or None
