"""What a project's finished studies say about its choices of target modules on a base model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from dashboard.models.study import Study
from dashboard.models.study_words import OUTCOMES, sentence

if TYPE_CHECKING:
    from dashboard.models.base_model import BaseModel
    from dashboard.models.project import Project

# Older ones are on the list of studies.
STUDIES_READ = 20


@dataclass(frozen=True)
class Evidence:
    """One finished study with its sentence."""

    study: Study
    sentence: str


def evidence_of(project: Project) -> list[Evidence]:
    """Studies of the project that compared something, newest first."""
    studies = Study.objects.with_facts().filter(project=project, finished_at__isnull=False)[:STUDIES_READ]
    return [Evidence(study, sentence(study)) for study in studies if study.result.get("comparisons")]


def told_by_config(project: Project, base_model: BaseModel) -> dict[int, str]:
    """Config -> how it compared in this project's studies on this base model."""
    counts: dict[int, Counter[str]] = {}
    ended = Study.objects.filter(project=project, base_model=base_model, finished_at__isnull=False)
    # The form asks at every change, so runs and their settings stay in the database.
    for study in ended.prefetch_related("arms")[:STUDIES_READ]:
        comparisons = study.result.get("comparisons")
        if not comparisons:
            continue
        outcomes = {one["arm"]: str(OUTCOMES[one["outcome"]]) for one in comparisons}
        outcomes[study.reference] = _("Reference")
        # An arm can stand for a config several times, with other settings: each counts.
        for arm in study.arms.all():
            if arm.name in outcomes:
                counts.setdefault(arm.target_module_config_id, Counter())[outcomes[arm.name]] += 1
    return {config: _told(found) for config, found in counts.items()}


def _told(found: Counter[str]) -> str:
    total = found.total()
    words = ", ".join(f"{outcome} ({count})" if total > 1 else outcome for outcome, count in found.items())
    return ngettext(
        "In %(count)d study of this project on this base model: %(words)s.",
        "In %(count)d comparisons of this project on this base model: %(words)s.",
        total,
    ) % {"count": total, "words": words}
