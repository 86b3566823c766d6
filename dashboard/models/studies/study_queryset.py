"""Queries of studies, and what their pages fetch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.db import models

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.jobs.job import Job
from dashboard.models.studies.study_arm import StudyArm
from dashboard.models.training.training_run import TrainingRun

if TYPE_CHECKING:
    from dashboard.models.studies.study import Study

# The newest studies from which the spread between seeds is estimated, and the fewest degrees of freedom.
SPREAD_STUDIES, SPREAD_FREEDOM = 20, 4


def facts() -> list[models.Prefetch[Any]]:
    """Return the prefetches of arms, runs and evaluations, with their jobs but without those jobs' specs."""
    runs = TrainingRun.objects.select_related("job", "adapter", "target_module_config")
    # JSON that no page of a study shows; there are dozens of runs.
    runs = runs.defer("job__spec", "adapter__files", "metadata", "confirmations")
    return [
        models.Prefetch("arms", StudyArm.objects.select_related("target_module_config")),
        models.Prefetch("arms__runs", runs),
        models.Prefetch("arms__runs__evaluations", Evaluation.objects.with_jobs()),
    ]


class StudyQuerySet(ProjectQuerySet["Study"]):
    """Queries of studies."""

    def with_names(self) -> StudyQuerySet:
        """Join what a row of a list names, without the census and the import report."""
        joined = self.select_related("base_model", "dataset_version__dataset", "created_by", "project")
        return joined.defer("base_model__census", "dataset_version__report")

    def for_lists(self) -> StudyQuerySet:
        """Read names and summaries; `fetch_facts_of_open` reads the rest of the studies that go on."""
        return self.with_names().defer("stored_result")

    def fetch_facts_of_open(self, studies: Iterable[Study]) -> None:
        """Fetch results, arms and runs of the studies that go on; the others keep a summary."""
        going_on = {study.pk: study for study in studies if not study.is_over}
        if going_on:
            for pk, result in self.filter(pk__in=going_on).values_list("pk", "stored_result"):
                going_on[pk].stored_result = result
            models.prefetch_related_objects(list(going_on.values()), *facts())

    def with_facts(self) -> StudyQuerySet:
        """Fetch everything that a study's page shows, in a fixed number of queries."""
        return self.with_names().prefetch_related(*facts())

    def unfinished(self) -> StudyQuerySet:
        """Return the studies that the dispatcher still advances."""
        return self.filter(finished_at=None)

    def of_job(self, job: Job) -> StudyQuerySet:
        """Return the study whose runs `job` trains or evaluates, if any."""
        trained = models.Q(arms__runs__job=job)
        scored = models.Q(arms__runs__evaluations__job=job, arms__runs__evaluations__reused_from=None)
        return self.filter(trained | scored).distinct()

    def seed_spread(self, project: Project, base_model: BaseModel, metric: str) -> float | None:
        """Return the standard deviation of an arm's score between seeds, pooled over arms of ended studies.

        None while too few seeds were compared, and if none of them differed, which says little.
        """
        ended = self.filter(project=project, base_model=base_model, metric=metric, finished_at__isnull=False)
        results = ended.values_list("stored_result", flat=True)[:SPREAD_STUDIES]
        arms = [arm["by_seed"] for result in results for arm in result.get("arms", ())]
        freedom = sum(len(means) - 1 for means in arms)
        if freedom < SPREAD_FREEDOM:
            return None
        squares = sum(len(means) * statistics.pvariance(means) for means in arms)
        return math.sqrt(squares / freedom) or None

    def launched_with(self, project: Project, idempotency_key: str) -> Study | None:
        """Return the study that an earlier request with this key started, if any."""
        job = Job.objects.find_by_idempotency_key(project, idempotency_key)
        return self.of_job(job).first() if job else None
