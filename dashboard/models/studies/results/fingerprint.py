"""A digest of the rows that the page of an ended study shows, so that it is rendered once until one changes.

Specs, curves and answers are left out: they change only with another attempt of a job, which is in it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from django.db.models import JSONField, Model, QuerySet, TextField
from django.db.models.functions import Cast

from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.studies.study_arm import StudyArm
from dashboard.models.training.training_run import TrainingRun

if TYPE_CHECKING:
    from dashboard.models.studies.study import Study

JOB = ("state", "attempt", "finished_at", "error_code", "error_message")


def fingerprint(study: Study) -> str:
    """Return a digest that changes with what is shown of an ended study, in three queries."""
    runs = TrainingRun.objects.filter(study_arm__study=study)
    evaluations = Evaluation.objects.filter(run__in=runs)
    shown = [
        *(loaded(row) for row in (study, study.project, study.base_model)),
        *(loaded(row) for row in (study.dataset_version, study.dataset_version.dataset)),
        stored(StudyArm.objects.filter(study=study), "target_module_config__name"),
        stored(runs, *within("job", JOB), "adapter__pk", "adapter__size_bytes"),
        stored(
            evaluations,
            *within("job", JOB),
            *within("judge_job", JOB),
            *within("base_evaluation__job", JOB),
            "base_evaluation__judge_job",
            Cast("base_evaluation__metrics", TextField()),
            Cast("base_evaluation__general_questions", TextField()),
        ),
    ]
    return hashlib.sha256(repr(shown).encode()).hexdigest()


def within(relation: str, names: tuple[str, ...]) -> list[str]:
    """Return the columns of a joined table."""
    return [f"{relation}__{name}" for name in names]


def loaded(row: Model) -> list[Any]:
    """Return the columns of a row that were read."""
    return [vars(row).get(field.attname) for field in row._meta.concrete_fields]


def stored(rows: QuerySet[Any], *joined: str | Cast) -> list[tuple[Any, ...]]:
    """Return the columns of rows and of joined tables; JSON as text, which costs no decoding."""
    own = [
        Cast(field.name, TextField()) if isinstance(field, JSONField) else field.attname
        for field in rows.model._meta.concrete_fields
        if field.name != "spec"
    ]
    return list(rows.order_by("pk").values_list(*own, *joined))
