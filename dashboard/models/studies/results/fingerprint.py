"""Digests of the rows that a page shows, so that it is rendered once until one changes.

Specs, curves of ended runs and answers are left out: they change only with another attempt of a job, which is
in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db.models import Count, JSONField, Max, Model, QuerySet, TextField
from django.db.models.functions import Cast

from dashboard.models.evaluations.blind_comparison import BlindComparison
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.studies.study_arm import StudyArm
from dashboard.models.training.metric_series import MetricSeries
from dashboard.models.training.training_run import TrainingRun

if TYPE_CHECKING:
    from dashboard.models.studies.study import Study

# What pages name of the rows that a run refers to.
NAMES = (
    *("base_model__name", "base_model__hub_id", "base_model__revision"),
    *("dataset_version__version", "dataset_version__dataset__name"),
    *("validation_version__version", "validation_version__dataset__name"),
    *("target_module_config__name", "target_module_config__version", "study_arm__name"),
    *("adapter__pk", "adapter__name", "adapter__version", "adapter__size_bytes"),
)
JOB = ("state", "attempt", "finished_at", "error_code", "error_message")


def study_fingerprint(study: Study) -> str:
    """Return a digest that changes with what is shown of an ended study, in three queries."""
    runs = TrainingRun.objects.filter(study_arm__study=study)
    return digest(
        *(loaded(row) for row in (study, study.project, study.base_model)),
        *(loaded(row) for row in (study.dataset_version, study.dataset_version.dataset)),
        stored(StudyArm.objects.filter(study=study), "target_module_config__name"),
        stored(runs, *within("job", JOB), "adapter__pk", "adapter__size_bytes"),
        scores(runs),
    )


def runs_fingerprint(keys: Sequence[int]) -> str:
    """Return a digest that changes with what is shown of chosen runs side by side, in five queries."""
    runs = TrainingRun.objects.filter(pk__in=keys)
    projects, bases = runs.values("project"), runs.values("base_model")
    curves = MetricSeries.objects.filter(run__in=keys, name__endswith="/loss").order_by("pk")
    kept = Evaluation.objects.filter(subject=Evaluation.Subject.BASE, project__in=projects)
    kept = kept.filter(base_model__in=bases, dataset_version__in=runs.values("dataset_version"))
    votes = BlindComparison.objects.filter(project__in=projects, base_model__in=bases).exclude(vote="")
    return digest(
        stored(runs, *within("job", JOB), *NAMES),
        scores(runs),
        list(kept.order_by("pk").values_list("pk", "rows", "split", "job__state", "judge_job")),
        list(curves.values_list("pk", "count", "last", "low")),
        votes.aggregate(Count("pk"), Max("voted_at")),
    )


def scores(runs: QuerySet[TrainingRun]) -> list[tuple[Any, ...]]:
    """Return the evaluations of runs, and what their base model's have that may change."""
    return stored(
        Evaluation.objects.filter(run__in=runs),
        *within("job", JOB),
        *within("judge_job", JOB),
        *within("base_evaluation__job", JOB),
        "base_evaluation__judge_job",
        Cast("base_evaluation__metrics", TextField()),
        Cast("base_evaluation__general_questions", TextField()),
    )


def digest(*shown: object) -> str:
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
