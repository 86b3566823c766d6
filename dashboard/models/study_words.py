"""A study's numbers in words: one sentence for managers, and what was not measured.

Says nothing that the numbers do not carry: no winner on overlapping evidence, no verdict below three seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from workers import verdicts

if TYPE_CHECKING:
    from dashboard.models.study import Study


class Judged(Protocol):
    """What has a metric: a study, or runs that somebody chose to compare."""

    @property
    def lower_is_better(self) -> bool: ...


OUTCOMES = {
    verdicts.BETTER: gettext_lazy("Better"),
    verdicts.NOT_INFERIOR: gettext_lazy("As good within your margin"),
    verdicts.INFERIOR: gettext_lazy("Worse"),
    verdicts.NOT_ENOUGH_EVIDENCE: gettext_lazy("Not enough evidence"),
    verdicts.INDICATIVE_ONLY: gettext_lazy("Indicative only"),
}


def outcome_in_words(one: dict[str, Any]) -> str:
    """What may be said of one arm; of an open case what is certain already."""
    certainly_worse = one["high"] < 0 and one["p_adjusted"] < 1 - verdicts.LEVEL
    if one["outcome"] == verdicts.NOT_ENOUGH_EVIDENCE and certainly_worse:
        return _("Worse; whether within your margin is open")
    return str(OUTCOMES[one["outcome"]])


def sentence(study: Study) -> str:
    """The verdict; "" while there is none."""
    result = study.result
    if not result:
        return ""
    if not result.get("arms"):
        return _("No arm of this study came to a result, so nothing can be said.")
    arms, comparisons = result["arms"], result.get("comparisons", [])
    if study.reference not in {arm["name"] for arm in arms}:
        return _(
            "The reference, %(name)s, has no result, so the other arms have nothing to be compared with."
        ) % {"name": study.reference}
    if not comparisons:
        return _("Only %(name)s came to a result, so there is nothing to compare.") % {
            "name": study.reference
        }
    best = chosen(study)
    if all(one["outcome"] == verdicts.INDICATIVE_ONLY for one in comparisons):
        return indicative(study, comparisons)
    if best is None:
        return _undecided(study, comparisons)
    return _decided(study, best)


def chosen(study: Study) -> dict[str, Any] | None:
    """The comparison whose arm is recommended: the smallest that is certainly better, or as good."""
    sizes = {arm.name: arm.hyperparameters and _size(arm) for arm in study.arms.all()}
    found = study.result.get("comparisons", [])
    for outcome in (verdicts.BETTER, verdicts.NOT_INFERIOR):
        good = [one for one in found if one["outcome"] == outcome]
        # As good is a reason to prefer an arm only where it is also smaller than the reference.
        if outcome == verdicts.NOT_INFERIOR:
            good = [one for one in good if sizes[one["arm"]] < sizes[study.reference]]
        if good:
            return dict(min(good, key=lambda one: sizes[one["arm"]]))
    return None


def recommended(study: Study) -> str:
    """The name of the arm that the evidence speaks for; "" when it speaks for none."""
    best = chosen(study)
    if best:
        return str(best["arm"])
    found = study.result.get("comparisons", [])
    only_worse = found and all(one["outcome"] == verdicts.INFERIOR for one in found)
    return study.reference if only_worse else ""


def _size(arm: Any) -> int:
    runs = arm.final_runs()
    return int(runs[0].forecast.get("trainable_parameters", 0)) if runs else 0


def _decided(study: Study, one: dict[str, Any]) -> str:
    sizes = {arm.name: _size(arm) for arm in study.arms.all()}
    words = {
        "arm": one["arm"],
        "reference": one["reference"],
        "share": share_in_words(sizes[one["arm"]], sizes[one["reference"]]),
        "difference": amount(study, one["difference"]),
        "interval": interval(study, one),
        "margin": amount(study, study.margin),
    }
    if one["outcome"] == verdicts.BETTER:
        return (
            _("%(arm)s is better than %(reference)s by %(difference)s (%(interval)s), with %(share)s.")
            % words
        )
    if one.get("kept"):
        kept = one["kept"]
        words["kept"] = _("%(mean).0f %% of the gain (interval %(low).0f to %(high).0f %%)") % {
            key: 100 * kept[key] for key in ("mean", "low", "high")
        }
        return (
            _(
                "%(arm)s kept %(kept)s of %(reference)s with %(share)s: "
                "as good within your margin of %(margin)s."
            )
            % words
        )
    return (
        _(
            "%(arm)s is as good as %(reference)s within your margin of %(margin)s (%(interval)s), "
            "with %(share)s."
        )
        % words
    )


def _undecided(study: Study, comparisons: list[dict[str, Any]]) -> str:
    worse = [one["arm"] for one in comparisons if one["outcome"] == verdicts.INFERIOR]
    if len(worse) == len(comparisons):
        return _("Every other arm is worse than %(reference)s by more than your margin of %(margin)s.") % {
            "reference": study.reference,
            "margin": amount(study, study.margin),
        }
    if all(one["outcome"] == verdicts.NOT_INFERIOR for one in comparisons):
        return _(
            "All arms are as good as %(reference)s within your margin of %(margin)s; it is the smallest."
        ) % {
            "reference": study.reference,
            "margin": amount(study, study.margin),
        }
    more = more_seeds(study)
    advice = (
        ngettext(
            "%(count)d more seed would probably decide.", "%(count)d more seeds would probably decide.", more
        )
        % {"count": more}
        if more
        else _("More test rows would help more than more seeds.")
    )
    return (
        _("Not enough evidence to say how the arms compare with %(reference)s.")
        % {"reference": study.reference}
        + f" {advice}"
    )


def indicative(study: Judged, comparisons: list[dict[str, Any]]) -> str:
    """What may be said of too few seeds: a number, and that it decides nothing."""
    seeds = max(len(one["seeds"]) for one in comparisons)
    highest = max(comparisons, key=lambda one: one["difference"])
    words = {
        "arm": highest["arm"],
        "where": _standing(study, highest),
        "interval": interval(study, highest),
    }
    found = (
        _("of the other arms %(arm)s comes out first, %(where)s (%(interval)s).")
        if len(comparisons) > 1
        else _("%(arm)s comes out %(where)s (%(interval)s).")
    ) % words
    return ngettext(
        "Indicative only, with %(count)d seed: %(found)s Three seeds are needed for a verdict.",
        "Indicative only, with %(count)d seeds: %(found)s Three seeds are needed for a verdict.",
        seeds,
    ) % {"count": seeds, "found": found}


def too_few(comparisons: list[dict[str, Any]]) -> str:
    """Which arms have too few seeds for a verdict, beside others that have enough; "" for none."""
    names = [one["arm"] for one in comparisons if one["outcome"] == verdicts.INDICATIVE_ONLY]
    if not names or len(names) == len(comparisons):
        return ""
    return _("Fewer than three seeds, so indicative only: %(arms)s.") % {"arms": ", ".join(names)}


def _standing(study: Judged, one: dict[str, Any]) -> str:
    """Where an arm stands next to the reference: 2.8 points behind Quality."""
    difference = one["difference"]
    words = {"difference": amount(study, abs(difference)), "reference": one["reference"]}
    if not difference:
        return _("level with %(reference)s") % words
    if difference > 0:
        return _("%(difference)s ahead of %(reference)s") % words
    return _("%(difference)s behind %(reference)s") % words


def more_seeds(study: Study) -> int | None:
    """How many further seeds would probably decide every open comparison; None when seeds cannot."""
    open_ones = [
        one
        for one in study.result.get("comparisons", [])
        if one["outcome"] in (verdicts.NOT_ENOUGH_EVIDENCE, verdicts.INDICATIVE_ONLY)
    ]
    wanted = [
        max(verdicts.MIN_SEEDS, one["seeds_needed"] or 0) - len(one["seeds"])
        for one in open_ones
        if one["seeds_needed"] or one["outcome"] == verdicts.INDICATIVE_ONLY
    ]
    return max(wanted, default=0) or None


def amount(study: Judged, value: float, *, signed: bool = False) -> str:
    """A difference in the metric's unit: points of a hundred, or nats of a loss."""
    if study.lower_is_better:
        return _("%(value)s nats") % {"value": f"{value:+.3f}" if signed else f"{value:.3f}"}
    points = 100 * value
    text = f"{points:+.1f}" if signed else f"{points:.1f}".removesuffix(".0")
    return ngettext("%(value)s point", "%(value)s points", 1 if text == "1" else 2) % {"value": text}


def interval(study: Judged, one: dict[str, Any]) -> str:
    """The 95 % interval of a difference."""
    scale = 1.0 if study.lower_is_better else 100.0
    digits = 3 if study.lower_is_better else 1
    return _("95 %% interval %(low)s to %(high)s") % {
        "low": f"{scale * one['low']:+.{digits}f}",
        "high": f"{scale * one['high']:+.{digits}f}",
    }


def share_in_words(size: int, reference: int) -> str:
    """How many parameters an arm has, against the reference: "a tenth of the parameters"."""
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


def later(study: Study) -> list[str]:
    """Say which seeds were added after the start, and whether a result was known then."""
    said = []
    for addition in study.additions:
        values = {"day": addition["at"][:10], "seeds": ", ".join(map(str, addition["seeds"]))}
        if addition["after_result"]:
            text = _(
                "Seeds added on %(day)s, after a first result: %(seeds)s. "
                "The intervals do not correct for having looked at it."
            )
        else:
            text = _("Seeds added on %(day)s, before any result: %(seeds)s.")
        said.append(text % values)
    return said


def measured_beside(study: Study) -> str:
    """What stood beside an arm while its time and memory were taken."""
    known = [(arm.name, arm.is_measured_alone) for arm in study.arms.all()]
    alone = [name for name, is_alone in known if is_alone]
    if all(is_alone is not False for _name, is_alone in known):
        return _("Every run trained alone: time and memory were taken with no other arm beside it.")
    said = _(
        "Arms train by turns on one loaded base model; time and memory are those of an arm's own turns, "
        "without what the others keep in memory."
    )
    if not alone:
        return said
    also = _("Trained alone, with no other arm beside them: %(arms)s.") % {"arms": ", ".join(alone)}
    return f"{said} {also}"


def _scaling(settings: dict[str, Any]) -> tuple[object, float]:
    """By which rule an arm's adapter is scaled."""
    return settings.get("use_rslora", False), settings["lora_alpha"] / settings["r"]


def cut_short(study: Study) -> list[str]:
    """Which of its runs somebody has stopped alone: those without a result, and those that ended early."""
    runs = [(arm, run) for arm in study.arms.all() for run in arm.final_runs()]
    parts = (
        ("cancelled", _("Stopped by a person, so without a result: %(runs)s.")),
        (
            "stopped_early",
            _(
                "Stopped by a person after fewer steps than planned, and compared by the best until then: "
                "%(runs)s."
            ),
        ),
    )
    said = []
    for outcome, words in parts:
        names = [
            _("%(arm)s with seed %(seed)d") % {"arm": arm.name, "seed": run.seed}
            for arm, run in runs
            if run.outcome == outcome
        ]
        # One that was stopped as a whole says so by itself.
        if names and not (outcome == "cancelled" and study.cancelled_at):
            said.append(words % {"runs": ", ".join(names)})
    return said


def unmeasured(study: Study) -> list[str]:
    """What this study does not tell."""
    said = [
        *cut_short(study),
        _("Other base models and other tasks were not measured."),
        _("Answers per second on a server were not measured."),
    ]
    sizes = {arm.name: size for arm in study.arms.all() if (size := _size(arm))}
    if study.budget == study.Budget.EQUAL_RANK and len(sizes) > 1:
        large, small = max(sizes, key=lambda name: sizes[name]), min(sizes, key=lambda name: sizes[name])
        if sizes[large] > sizes[small]:
            said.append(
                _(
                    "Arms of equal size were not compared: at equal rank, %(large)s has %(times)s times the "
                    "parameters of %(small)s."
                )
                % {"large": large, "small": small, "times": f"{sizes[large] / sizes[small]:.1f}"}
            )
    if len({_scaling(arm.hyperparameters) for arm in study.arms.all()}) > 1:
        said.append(
            _(
                "The arms do not scale their adapters by one rule (alpha against rank), so a part of a "
                "difference may be that of the size of a step."
            )
        )
    if not study.learning_rates:
        said.append(_("Learning rates were not tuned: every arm learned with the rate it was given."))
    edges = [arm.name for arm in study.arms.all() if not arm.is_bracketed]
    if edges:
        said.append(
            _(
                "The search for the learning rate is not bracketed for %(arms)s: the chosen rate lies at the "
                "edge of what was tried, and a better one may lie beyond."
            )
            % {"arms": ", ".join(edges)}
        )
    comparisons = study.result.get("comparisons", [])
    if few := too_few(comparisons):
        said.append(few)
    if any(one.get("seeds_disagree") for one in comparisons):
        said.append(_("The seeds disagree more than the test rows do: more seeds tell more than more rows."))
    return said
