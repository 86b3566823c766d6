"""The evidence of a project's finished studies about target modules on a base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet, TextField
from django.db.models.functions import MD5, Cast
from django.utils.translation import get_language, ngettext
from django.utils.translation import gettext as _

from dashboard.models.studies.results.verdict_sentence import OUTCOMES
from dashboard.models.studies.study import Study
from dashboard.models.studies.study_arm import StudyArm

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
    studies = Study.objects.for_lists().filter(project=project, finished_at__isnull=False)[:STUDIES_READ]
    return [Evidence(study, study.summary["verdict"]) for study in studies if study.summary["comparisons"]]


def outcomes_by_config(project: Project, base_model: BaseModel) -> dict[int, str]:
    """Return config -> its outcomes in this project's studies on this base model."""
    return _outcomes(_results(project, base_model.pk), get_language())


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
    recommending = _recommending(_results(project, base_model_id))
    decided = sum(map(len, recommending.values()))
    config_id, studies = max(recommending.items(), key=lambda one: len(one[1]), default=(0, []))
    if 2 * len(studies) <= decided:
        return None
    return Preference(config_id, len(studies), decided, Study.objects.only("name").get(pk=studies[0]))


# The newest studies, each with the digest of its result.
Results = tuple[tuple[int, str], ...]


def _results(project: Project, base_model_id: int | None) -> Results:
    """Return the ended studies of a project on a base model, as the key of what is kept of them."""
    ended = Study.objects.filter(project=project, base_model=base_model_id, finished_at__isnull=False)
    digest = MD5(Cast("stored_result", TextField()))
    return tuple(ended.annotate(digest=digest).values_list("pk", "digest")[:STUDIES_READ])


# Forms ask at every change, and a result changes rarely. The arms of a study never do.
@lru_cache(maxsize=64)
def _outcomes(results: Results, _language: str | None) -> dict[int, str]:
    counts: dict[int, Counter[str]] = {}
    compared = _parts(results, "comparisons")
    facts = ("study", "position", "is_reference", "target_module_config")
    for study, position, is_reference, config in _arms(compared).values_list(*facts):
        outcomes = {one["position"]: str(OUTCOMES[one["outcome"]]) for one in compared[study] or ()}
        if outcomes and is_reference:
            outcomes[position] = _("Reference")
        # Several arms can have one config and different settings: each counts.
        if position in outcomes:
            counts.setdefault(config, Counter())[outcomes[position]] += 1
    return {config: _summary(outcomes) for config, outcomes in counts.items()}


@lru_cache(maxsize=64)
def _recommending(results: Results) -> dict[int, list[int]]:
    """Return config -> the studies that recommend it, the newest first."""
    recommended = _parts(results, "recommended")
    recommending: dict[int, list[int]] = {}
    for study, name, config in _arms(recommended).values_list("study", "name", "target_module_config"):
        if recommended[study] and name == recommended[study]:
            recommending.setdefault(config, []).append(study)
    return recommending


def _parts(results: Results, name: str) -> dict[int, Any]:
    """Return study -> this part of its result."""
    studies = Study.objects.filter(pk__in=[study for study, _digest in results])
    return dict(studies.values_list("pk", f"stored_result__{name}"))


def _arms(studies: Iterable[int]) -> QuerySet[StudyArm]:
    """Return the arms of these studies, those of the newest first."""
    return StudyArm.objects.filter(study__in=list(studies)).order_by("-study", "position")


def _summary(outcomes: Counter[str]) -> str:
    total = outcomes.total()
    words = ", ".join(f"{outcome} ({count})" if total > 1 else outcome for outcome, count in outcomes.items())
    return ngettext(
        "In %(count)d study of this project on this base model: %(words)s.",
        "In %(count)d comparisons of this project on this base model: %(words)s.",
        total,
    ) % {"count": total, "words": words}
