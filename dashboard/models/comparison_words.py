"""A comparison of chosen runs in words: one sentence first, and what cannot be compared."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from dashboard.models.comparison import BETTER, WORSE, ComparedArm, Comparison
from dashboard.models.study_words import amount, indicative, interval, too_few
from workers import verdicts

OUTCOMES = {
    BETTER: gettext_lazy("Better"),
    WORSE: gettext_lazy("Worse"),
    verdicts.NOT_ENOUGH_EVIDENCE: gettext_lazy("Not enough evidence"),
    verdicts.INDICATIVE_ONLY: gettext_lazy("Indicative only"),
}


def sentence(comparison: Comparison) -> str:
    """What the numbers say, against the pinned reference; says which number is missing where one is."""
    found = {arm["name"] for arm in comparison.numbers["arms"]}
    compared = comparison.numbers.get("comparisons", [])
    if not comparison.scored:
        return _("%(name)s has not been evaluated, so the other runs have nothing to be compared with.") % {
            "name": comparison.reference.name
        }
    if not found:
        return _("No row was scored for all of these runs, so they cannot be compared row by row.")
    if comparison.reference.name not in found:
        return _(
            "%(name)s has no scores of single rows, so the other runs have nothing to be compared with."
        ) % {"name": comparison.reference.name}
    if not compared:
        return _("Only %(name)s has scores, so there is nothing to compare.") % {
            "name": comparison.reference.name
        }
    if all(one["outcome"] == verdicts.INDICATIVE_ONLY for one in compared):
        return indicative(comparison, compared)
    said = [part for one in compared if (part := _decided(comparison, one))]
    unsure = [one["arm"] for one in compared if one["outcome"] == verdicts.NOT_ENOUGH_EVIDENCE]
    if unsure:
        text = _("Not enough evidence to tell %(arms)s from %(reference)s.")
        said.append(text % {"arms": ", ".join(unsure), "reference": compared[0]["reference"]})
    if few := too_few(compared):
        said.append(few)
    return " ".join(said)


def _decided(comparison: Comparison, one: dict[str, Any]) -> str:
    words = {
        "arm": one["arm"],
        "reference": one["reference"],
        "difference": amount(comparison, abs(one["difference"])),
        "interval": interval(comparison, one),
    }
    if one["outcome"] == BETTER:
        return _("%(arm)s is better than %(reference)s by %(difference)s (%(interval)s).") % words
    if one["outcome"] == WORSE:
        return _("%(arm)s is worse than %(reference)s by %(difference)s (%(interval)s).") % words
    return ""


def warnings(comparison: Comparison) -> list[str]:
    """What makes these runs hard to compare, and what was left out."""
    runs = [arm.first for arm in comparison.arms]
    said = []
    if len({run.dataset_version_id for run in runs}) > 1:
        said.append(_("They learned from different dataset versions, so their scores are on different rows."))
    if comparison.elsewhere and comparison.scored:
        said.append(
            _("Scored on other rows than %(reference)s, so not compared with it: %(arms)s.")
            % {"reference": comparison.reference.name, "arms": names(comparison.elsewhere)}
        )
    if len({run.base_model_id for run in runs}) > 1:
        said.append(
            _(
                "They adapt different base models. A difference may come from the base model "
                "rather than from the adapter."
            )
        )
    if len({arm.first.hyperparameters.get("max_length") for arm in comparison.scored}) > 1:
        said.append(_("They were scored with different maximum lengths, which may cut other prompts."))
    if len(comparison.judges) > 1:
        said.append(_("They were judged by different models or prompts, whose verdicts cannot be compared."))
    said += _left_out(comparison)
    return said


def _left_out(comparison: Comparison) -> list[str]:
    said = []
    waiting = sum(len(arm.runs) - len(arm.evaluations()) for arm in comparison.arms)
    if waiting:
        text = ngettext(
            "%(count)d run has no evaluation yet.", "%(count)d runs have no evaluation yet.", waiting
        )
        said.append(text % {"count": waiting})
    numbers = comparison.numbers
    if numbers["arms"] and numbers["items"] < numbers["most_items"]:
        text = _(
            "Compared on the %(items)d rows that all were scored on; some were scored on up to %(most)d."
        )
        said.append(text % {"items": numbers["items"], "most": numbers["most_items"]})
    loose = [one["arm"] for one in numbers.get("comparisons", []) if not one["paired"]]
    if loose:
        text = _("No seed in common with %(reference)s, so seeds are paired in their order: %(arms)s.")
        said.append(text % {"reference": comparison.reference.name, "arms": ", ".join(loose)})
    repeats = [run for arm in comparison.arms for run in arm.repeats]
    if repeats:
        text = _("Same settings and same seed as another chosen run, so not counted: %(runs)s.")
        said.append(text % {"runs": ", ".join(f"{run.name} #{run.pk}" for run in repeats)})
    if not comparison.bases and comparison.scored:
        said.append(_("The base model was not scored on these rows, so the gain over it is not shown."))
    return said


def names(arms: list[ComparedArm]) -> str:
    """Their names in one line."""
    return ", ".join(arm.name for arm in arms)
