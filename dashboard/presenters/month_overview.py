"""The month at a glance for managers, from stored rows: results, cost, decisions, failures, and who waits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count, Max, Min, Q, QuerySet
from django.utils import timezone

from dashboard.models import Adapter, Decision, Job, Project, State, Study, TrainingRun, User
from dashboard.models.jobs.compute_budget import BudgetStatus
from dashboard.models.jobs.compute_use import Month, unit_label

ROWS = 5
# A study without a decision is listed this long.
UNDECIDED_AGE = timedelta(days=90)
PERSON_FIELDS = ("first_name", "last_name", "email")
DECISION_FIELDS = (
    *("reason", "decided_at", "approved", "study__name"),
    *("adapter__name", "adapter__version", "adapter__stage"),
    *(f"decided_by__{field}" for field in PERSON_FIELDS),
)
# What the sentence about a failed run is made of.
FAILURE_FIELDS = (
    *("name", "outcome", "error_code", "error_message", "reused_from"),
    *(f"job__{field}" for field in ("state", "error_code", "error_message")),
)


@dataclass(frozen=True)
class MonthOverview:
    """A month at a glance. `verdicts`: the newest study of each dataset, with the number of others.

    `further_datasets` have a verdict as well, and `further_decisions` wait as well.
    """

    month: Month
    budget: BudgetStatus
    unit: str
    verdicts: list[tuple[Study, int]]
    further_datasets: int
    decisions: list[Decision]
    proposals: list[Decision]
    undecided: list[Study]
    further_decisions: int
    failures: list[dict[str, Any]]
    failed_runs: int
    finished_runs: int
    waiting: list[dict[str, Any]]

    @classmethod
    def of(cls, project: Project, budget: BudgetStatus) -> MonthOverview:
        month = budget.month
        runs = TrainingRun.objects.filter(project=project, reused_from=None, created_at__gte=month.begin)
        # Read from an index alone.
        endings = (
            runs.order_by().values("outcome", "error_code").annotate(count=Count("pk"), newest=Max("pk"))
        )
        outcomes: dict[str, int] = {}
        for row in endings:
            outcomes[row["outcome"]] = outcomes.get(row["outcome"], 0) + row["count"]
        decisions = Decision.objects.filter(project=project).select_related("study", "adapter", "decided_by")
        decisions = decisions.only(*DECISION_FIELDS)
        # A later change of the stage settles a proposal.
        is_proposal = Q(approved=False, adapter__stage=Adapter.Stage.DRAFT)
        log = list(decisions.filter(is_proposal | Q(decided_at__gte=month.begin)))
        proposed = {one.pk for one in log if not one.approved and one.adapter.stage == Adapter.Stage.DRAFT}
        proposals = [one for one in log if one.pk in proposed]
        undecided = list(undecided_studies(project))
        verdicts = newest_of_datasets(ended_studies(project).filter(finished_at__gte=month.begin))
        return cls(
            month=month,
            budget=budget,
            unit=unit_label(),
            verdicts=verdicts[:ROWS],
            further_datasets=len(verdicts[ROWS:]),
            decisions=[one for one in log if one.pk not in proposed][:ROWS],
            proposals=proposals[:ROWS],
            undecided=undecided[:ROWS],
            further_decisions=len(proposals[ROWS:]) + len(undecided[ROWS:]),
            failures=failures([row for row in endings if row["outcome"] == "failed"]),
            failed_runs=outcomes.get("failed", 0),
            finished_runs=outcomes.get("succeeded", 0) + outcomes.get("stopped_early", 0),
            waiting=waiting_people(project),
        )

    @property
    def is_empty(self) -> bool:
        """Return whether nothing happened this month and nothing waits."""
        parts = (self.verdicts, self.decisions, self.proposals, self.undecided, self.failures, self.waiting)
        return not any(parts) and not self.finished_runs and not self.budget.used


def ended_studies(project: Project) -> QuerySet[Study]:
    """Return the ended studies, the newest first, without what only their own page reads."""
    ended = Study.objects.filter(project=project, finished_at__isnull=False).order_by("-finished_at")
    fields = ("name", "finished_at", "stored_summary", "dataset_version__dataset__name")
    return ended.select_related("dataset_version__dataset").only(*fields)


def newest_of_datasets(studies: QuerySet[Study]) -> list[tuple[Study, int]]:
    """Return the newest study of each dataset, with the number of its other studies."""
    found: dict[int, list[Study]] = {}
    for study in studies:
        found.setdefault(study.dataset_version.dataset_id, []).append(study)
    return [(group[0], len(group) - 1) for group in found.values()]


def undecided_studies(project: Project) -> QuerySet[Study]:
    """Return the studies of the last months with a verdict and without a decision, the newest first."""
    since = timezone.now() - UNDECIDED_AGE
    ended = ended_studies(project).select_related(None).only("name")
    return ended.filter(finished_at__gte=since, decisions=None, stored_summary__state=State.SUCCEEDED)


def failures(causes: list[Any]) -> list[dict[str, Any]]:
    """Return the most frequent causes of failed runs, with their number and the newest run."""
    causes = sorted(causes, key=lambda cause: -cause["count"])[:ROWS]
    runs = TrainingRun.objects.select_related("job").only(*FAILURE_FIELDS)
    newest = runs.in_bulk([cause["newest"] for cause in causes])
    return [{"count": cause["count"], "run": newest[cause["newest"]]} for cause in causes]


def waiting_people(project: Project) -> list[dict[str, Any]]:
    """Return who has waiting jobs, the longest wait first: person, number of jobs, and since when."""
    queued = Job.objects.filter(project=project, state=State.QUEUED).order_by()
    fields = [f"created_by__{field}" for field in PERSON_FIELDS]
    rows = queued.values_list("created_by", *fields).annotate(count=Count("pk"), since=Min("created_at"))
    return [
        {
            "person": User(pk=pk, **dict(zip(PERSON_FIELDS, names, strict=True))) if pk else None,
            "count": count,
            "since": since,
        }
        for pk, *names, count, since in rows.order_by("since")
    ]
