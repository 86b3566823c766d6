"""The limits of a result: what was not measured, and what makes chosen runs hard to compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from dashboard.models.studies.results.verdict_sentence import parameters_of, too_few_seeds

if TYPE_CHECKING:
    from dashboard.models.studies.results.comparison import ChosenArm, UnsavedStudy
    from dashboard.models.studies.study import Study


def unmeasured(study: Study) -> list[str]:
    """Return the limits of a saved study's result."""
    limits = [
        *cut_short(study),
        _("Other base models and other tasks were not measured."),
        _("Answers per second on a server were not measured."),
    ]
    sizes = {arm.name: size for arm in study.arm_list if (size := parameters_of(arm))}
    if study.budget == study.Budget.EQUAL_RANK and len(sizes) > 1:
        large, small = max(sizes, key=lambda name: sizes[name]), min(sizes, key=lambda name: sizes[name])
        if sizes[large] > sizes[small]:
            text = _(
                "Arms of equal size were not compared: at equal rank, %(large)s has %(times)s times the "
                "parameters of %(small)s."
            )
            times = f"{sizes[large] / sizes[small]:.1f}"
            limits.append(text % {"large": large, "small": small, "times": times})
    if len({_scaling(arm.hyperparameters) for arm in study.arm_list}) > 1:
        limits.append(
            _(
                "The arms scale their adapters by different rules (alpha against rank), so a part of a "
                "difference may come from the size of a step."
            )
        )
    if not study.learning_rates:
        limits.append(_("Learning rates were not tuned: every arm trained with the rate it was given."))
    else:
        limits.append(
            _(
                "Each arm trained with the learning rate that had the lowest validation loss in the search. "
                "The intervals hold for these rates and do not contain the uncertainty of that choice."
            )
        )
    edges = [arm.name for arm in study.arm_list if not arm.is_bracketed]
    if edges:
        text = _(
            "The search for the learning rate is not bracketed for %(arms)s: the chosen rate lies at the "
            "edge of what was tried, and a better one may lie beyond."
        )
        limits.append(text % {"arms": ", ".join(edges)})
    if unsteady := [one.name for one in study.result.arms if one.is_unsteady]:
        text = _("Unsteady, as their seeds differ more than those of the other arms: %(arms)s.")
        limits.append(text % {"arms": ", ".join(unsteady)})
    if few := too_few_seeds(study.result.comparisons):
        limits.append(few)
    if any(comparison.seeds_disagree for comparison in study.result.comparisons):
        limits.append(
            _("The seeds disagree more than the test rows do, so rows alone would not narrow the intervals.")
        )
    return limits


def cut_short(study: Study) -> list[str]:
    """Name the runs that were stopped: those without a result, and those that ended early."""
    runs = [(arm, run) for arm in study.arm_list for run in arm.final_runs()]
    texts = {
        "cancelled": _("Stopped, so without a result: %(runs)s."),
        "stopped_early": _(
            "Stopped after fewer steps than planned, and compared by the best checkpoint: %(runs)s."
        ),
    }
    if study.cancelled_at:  # the page says so of the study as a whole
        del texts["cancelled"]
    limits = []
    for outcome, text in texts.items():
        names = [
            _("%(arm)s with seed %(seed)d") % {"arm": arm.name, "seed": run.seed}
            for arm, run in runs
            if run.outcome == outcome
        ]
        if names:
            limits.append(text % {"runs": ", ".join(names)})
    return limits


def measured_beside(study: Study) -> str:
    """State whether arms shared a base model while time and memory were measured, and name reused runs."""
    reused = [
        _("%(arm)s with seed %(seed)d (run %(run)d)")
        % {"arm": arm.name, "seed": run.seed, "run": run.reused_from_id}
        for arm in study.arm_list
        for run in arm.final_runs()
        if run.reused_from_id
    ]
    if not reused:
        return _beside(study)
    text = _("Reused from finished runs with equal settings, with their time and memory: %(runs)s.")
    return f"{_beside(study)} {text % {'runs': ', '.join(reused)}}"


def _beside(study: Study) -> str:
    measured = [(arm.name, arm.is_measured_alone) for arm in study.arm_list]
    alone = [name for name, is_alone in measured if is_alone]
    if all(is_alone is not False for _name, is_alone in measured):
        return _("Every run trained alone: time and memory were measured with no other arm beside it.")
    shared = _(
        "The arms share one loaded base model. Each arm's time and memory are measured while it trains, "
        "without the memory of the other arms."
    )
    if not alone:
        return shared
    also = _("Trained alone, with no other arm beside them: %(arms)s.") % {"arms": ", ".join(alone)}
    return f"{shared} {also}"


def added_seeds(study: Study) -> list[str]:
    """State which seeds were added after the start, and whether a result was known then."""
    texts = []
    for addition in study.additions:
        values = {"day": addition["at"][:10], "seeds": ", ".join(map(str, addition["seeds"]))}
        if addition["after_result"]:
            text = _(
                "Seeds added on %(day)s, after a first result: %(seeds)s. "
                "The intervals allow for having looked at it."
            )
        else:
            text = _("Seeds added on %(day)s, before any result: %(seeds)s.")
        texts.append(text % values)
    return texts


def _scaling(settings: dict[str, Any]) -> tuple[object, float]:
    """Return the rule by which an arm's adapter is scaled."""
    return settings.get("use_rslora", False), settings["lora_alpha"] / settings["r"]


# Chosen runs


def warnings(study: UnsavedStudy) -> list[str]:
    """Return the reasons why chosen runs are hard to compare, and what was left out."""
    runs = [arm.first for arm in study.arm_list]
    texts = []
    if len({run.dataset_version_id for run in runs}) > 1:
        texts.append(
            _("The runs learned from different dataset versions, so their scores are on different rows.")
        )
    if study.scored_elsewhere and study.scored:
        text = _("Scored on other rows than %(reference)s, so not compared with it: %(arms)s.")
        texts.append(text % {"reference": study.reference, "arms": _names(study.scored_elsewhere)})
    if len({run.base_model_id for run in runs}) > 1:
        texts.append(
            _(
                "The runs adapt different base models. A difference may come from the base model "
                "rather than from the adapter."
            )
        )
    if len({arm.first.hyperparameters.get("max_length") for arm in study.scored}) > 1:
        texts.append(
            _("The runs were scored with different maximum lengths, which may cut different prompts.")
        )
    if len(study.judges) > 1:
        texts.append(
            _("The answers were judged by different models or prompts, whose verdicts cannot be compared.")
        )
    return texts + _left_out(study)


def _left_out(study: UnsavedStudy) -> list[str]:
    texts = []
    pending = sum(len(arm.runs) - len(arm.evaluations()) for arm in study.arm_list)
    if pending:
        text = ngettext(
            "%(count)d run has no evaluation yet.", "%(count)d runs have no evaluation yet.", pending
        )
        texts.append(text % {"count": pending})
    result = study.result
    if result.items < result.most_items:
        text = _(
            "Compared on the %(items)d rows that all were scored on; some were scored on up to %(most)d."
        )
        texts.append(text % {"items": result.items, "most": result.most_items})
    unpaired = [comparison.arm for comparison in result.comparisons if not comparison.paired]
    if unpaired:
        text = _("No seed in common with %(reference)s, so seeds are paired in their order: %(arms)s.")
        texts.append(text % {"reference": study.reference, "arms": ", ".join(unpaired)})
    repeats = [run for arm in study.arm_list for run in arm.repeats]
    if repeats:
        text = _("Same settings and same seed as another chosen run, so not counted: %(runs)s.")
        texts.append(text % {"runs": ", ".join(f"{run.name} #{run.pk}" for run in repeats)})
    if not study.base_evaluations and study.scored:
        texts.append(_("The base model was not scored on these rows, so the gain over it is not shown."))
    return texts


def _names(arms: Sequence[ChosenArm]) -> str:
    return ", ".join(arm.name for arm in arms)
