"""The evidence of a project's finished studies about target modules on a base model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from dashboard.models.studies.results.verdict_sentence import OUTCOMES
from dashboard.models.studies.study import Study

if TYPE_CHECKING:
    from dashboard.models.accounts.project import Project
    from dashboard.models.catalog.base_model import BaseModel

# Older ones are on the list of studies.
STUDIES_READ = 20


@dataclass(frozen=True)
class Evidence:
    """A finished study with its sentence."""

    study: Study
    sentence: str


def evidence_of(project: Project) -> list[Evidence]:
    """Return the studies of the project that compared something, newest first."""
    studies = Study.objects.with_names().filter(project=project, finished_at__isnull=False)[:STUDIES_READ]
    return [Evidence(study, study.summary["verdict"]) for study in studies if study.summary["comparisons"]]


def outcomes_by_config(project: Project, base_model: BaseModel) -> dict[int, str]:
    """Return config -> its outcomes in this project's studies on this base model."""
    counts: dict[int, Counter[str]] = {}
    ended = Study.objects.filter(project=project, base_model=base_model, finished_at__isnull=False)
    # The form asks at every change, so runs are not fetched.
    for study in ended.prefetch_related("arms")[:STUDIES_READ]:
        comparisons = study.result.comparisons
        if not comparisons:
            continue
        outcomes = {one.position: str(OUTCOMES[one.outcome]) for one in comparisons}
        outcomes[study.reference_arm.position] = _("Reference")
        # Several arms can have one config and different settings: each counts.
        for arm in study.arms.all():
            if arm.position in outcomes:
                counts.setdefault(arm.target_module_config_id, Counter())[outcomes[arm.position]] += 1
    return {config: _summary(outcomes) for config, outcomes in counts.items()}


@dataclass(frozen=True)
class Preference:
    """The config that most of a project's decided studies on a base model recommend."""

    config_id: int
    supporting: int
    decided: int
    study: Study  # the newest of the supporting studies

    @property
    def sentence(self) -> str:
        """Return the reason for the form's preselection."""
        return ngettext(
            "%(supporting)d of %(count)d study of this project on this base model that came to a clear "
            "result recommends it, so it is preselected.",
            "%(supporting)d of %(count)d studies of this project on this base model that came to a clear "
            "result recommend it, so it is preselected.",
            self.decided,
        ) % {"supporting": self.supporting, "count": self.decided}


def preference(project: Project, base_model_id: int | None) -> Preference | None:
    """Return the config that more than half of the decided studies recommend, to preselect it in the form.

    A study is decided when its arms were told apart: one is certainly better than the reference, or as good
    and smaller, or the reference is better than all. None while there is no such study, or no such choice.
    """
    ended = Study.objects.filter(project=project, base_model=base_model_id, finished_at__isnull=False)
    recommending: dict[int, list[Study]] = {}
    for study in ended.prefetch_related("arms")[:STUDIES_READ]:
        recommended = study.result.recommended
        for arm in study.arms.all():
            if recommended and arm.name == recommended:
                recommending.setdefault(arm.target_module_config_id, []).append(study)
    decided = sum(map(len, recommending.values()))
    config_id, studies = max(recommending.items(), key=lambda one: len(one[1]), default=(0, []))
    if 2 * len(studies) <= decided:
        return None
    return Preference(config_id, len(studies), decided, studies[0])


def _summary(outcomes: Counter[str]) -> str:
    total = outcomes.total()
    words = ", ".join(f"{outcome} ({count})" if total > 1 else outcome for outcome, count in outcomes.items())
    return ngettext(
        "In %(count)d study of this project on this base model: %(words)s.",
        "In %(count)d comparisons of this project on this base model: %(words)s.",
        total,
    ) % {"count": total, "words": words}
