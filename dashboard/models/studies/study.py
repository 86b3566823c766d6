"""Studies: several choices of target modules, trained on the same data and base model, compared in pairs.

A study has arms, and an arm has one run per seed. The workers share the arms of a seed, one job each.
`Study.advance` queues whatever the ended jobs allow; it may be called at any time.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, transaction
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.accounts.project import Project
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.catalog.metrics import is_lower_better, metric_label
from dashboard.models.evaluations.run_score import RunScore
from dashboard.models.jobs.compute_use import HOUR
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import LIVE, TERMINAL, State
from dashboard.models.studies.advance import queue_next
from dashboard.models.studies.forecast import (
    remaining_scoring_seconds,
    remaining_training_seconds,
    scoring_forecast,
    seconds_queued,
)
from dashboard.models.studies.looks import due_look
from dashboard.models.studies.plan import TEST_ROWS
from dashboard.models.studies.results.formats import format_difference
from dashboard.models.studies.results.result import StudyResult, result_of
from dashboard.models.studies.results.verdict_sentence import recommended_arm
from dashboard.models.studies.study_arm import StudyArm
from dashboard.models.studies.study_queryset import StudyQuerySet
from dashboard.models.training.training_run import TrainingRun
from workers.contract.errors import SpecError, TargetError
from workers.statistics.looks import look_sizes
from workers.statistics.regex_metric import PATTERN_LETTERS

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User


class Study(models.Model):
    """A comparison whose arms, seeds, budget, metric, reference and margin are fixed before it starts."""

    class Budget(models.TextChoices):
        EQUAL_RANK = "equal-rank", gettext_lazy("Equal rank: what you would do in practice")
        EQUAL_PARAMETERS = "equal-parameters", gettext_lazy("Equal parameters: a fair test of the modules")

    project = models.ForeignKey(Project, models.CASCADE, related_name="studies")
    name = models.CharField(gettext_lazy("name"), max_length=120)
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="studies")
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="studies")
    budget = models.CharField(max_length=20, choices=Budget.choices, default=Budget.EQUAL_RANK)
    metric = models.CharField(max_length=20)
    margin = models.FloatField()
    seeds = models.JSONField()
    learning_rates = models.JSONField(default=list)
    # The regular expression that a correct answer contains, for the metric `regex`.
    pattern = models.CharField(max_length=PATTERN_LETTERS, blank=True)
    test_rows = models.PositiveIntegerField(default=TEST_ROWS)
    # Whether finished runs with equal specs are reused.
    reuse = models.BooleanField(default=True)
    # Device hours after which no further seed of the plan starts; null for no limit.
    max_hours = models.FloatField(null=True, blank=True)
    # Seeds added after the start: [{at, seeds, after_result, ended_with}].
    additions = models.JSONField(default=list)
    # The user who accepted the warnings about target modules; each run keeps the sentences.
    confirmed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # Seconds of all its training: runs that are not queued yet have no forecast of their own.
    forecast_seconds = models.FloatField(default=0)
    # As shown before the start, plus added seeds: {training, scoring: {low, expected, high}} in seconds.
    forecast = models.JSONField(default=dict)
    # A `StudyResult`, written when everything has ended; {} until then.
    stored_result = models.JSONField(default=dict)
    # The API's answer with the verdict's sentence, written with the result; lists show it as it is.
    stored_summary = models.JSONField(default=dict)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    cancelled_at = models.DateTimeField(null=True, blank=True)
    stop_reason = models.TextField(blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = StudyQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["project", "-id"])]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(budget__in=["equal-rank", "equal-parameters"]), name="study_budget_known"
            ),
            models.CheckConstraint(condition=models.Q(margin__gte=0), name="study_margin_not_negative"),
            models.CheckConstraint(
                condition=models.Q(max_hours=None) | models.Q(max_hours__gt=0),
                name="study_max_hours_positive",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("study-detail", args=[self.pk])

    def runs(self) -> models.QuerySet[TrainingRun]:
        """Return every run, including the short runs of the search for a learning rate."""
        return TrainingRun.objects.filter(study_arm__study=self)

    def arms_with_runs(self) -> list[StudyArm]:
        """Return its arms with their runs, in two queries or as fetched by `with_facts`."""
        arms = self.arm_list
        models.prefetch_related_objects(arms, "runs")
        return arms

    def final_runs(self) -> list[TrainingRun]:
        """Return the runs whose scores count: one for each arm and seed that has started."""
        return [run for arm in self.arms_with_runs() for run in arm.final_runs()]

    def jobs(self) -> models.QuerySet[Job]:
        runs = self.runs()
        return Job.objects.filter(
            models.Q(training_runs__in=runs)
            | models.Q(evaluations__run__in=runs, evaluations__reused_from=None)
        ).distinct()

    @property
    def state(self) -> str:
        """Return queued, running, cancelling, succeeded, failed or cancelled, derived from its jobs."""
        if self.summary:
            return str(self.summary["state"])
        if self.finished_at:
            if self.cancelled_at and not self.result.comparisons:
                return State.FAILED if self.stop_reason else State.CANCELLED
            return State.SUCCEEDED if self.result.arms else State.FAILED
        # From the rows fetched by `with_facts`, so that a list needs no query per study.
        runs = [run for arm in self.arms_with_runs() for run in arm.runs.all()]
        scoring = [evaluation.job for run in runs for evaluation in run.evaluations.all()]
        jobs = [job for job in (*(run.job for run in runs), *scoring) if job]
        # A re-evaluation may be requested after a stop; the study is then no longer cancelling.
        is_stopped = self.cancelled_at and all(job.is_over for job in jobs)
        if is_stopped or any(job.state == State.CANCELLING for job in jobs):
            return State.CANCELLING
        started = any(job.attempt or job.state in (*LIVE, *TERMINAL) for job in jobs)
        return State.RUNNING if started else State.QUEUED

    @property
    def is_over(self) -> bool:
        """Return whether all of its jobs have ended."""
        return self.finished_at is not None

    @property
    def scores_are_open(self) -> bool:
        """Return whether scores are shown: only after the end, so that no score tempts to stop."""
        return self.is_over

    @property
    def error(self) -> dict[str, str] | None:
        """Return why no arm came to a result, or None."""
        if self.state != State.FAILED:
            return None
        if self.stop_reason:
            return {"code": "plan_outdated", "message": self.stop_reason}
        first = next((arm.error for arm in self.arms.all() if arm.error), None)
        return first or {"code": "no_result", "message": _("No arm of this study came to a result.")}

    @property
    def summary(self) -> dict[str, Any]:
        """Return the API's answer as it was stored at the end; {} before."""
        return self.stored_summary if self.is_over else {}

    @cached_property
    def result(self) -> StudyResult:
        """Return the numbers of the verdict; an empty result before the end."""
        return StudyResult.from_dict(self.stored_result)

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        """Reload the row, and read the result anew."""
        super().refresh_from_db(*args, **kwargs)
        vars(self).pop("result", None)

    @property
    def arm_list(self) -> list[StudyArm]:
        return list(self.arms.all())

    @property
    def reference_arm(self) -> StudyArm:
        """Return the arm that every other one is compared with."""
        return next(arm for arm in self.arms.all() if arm.is_reference)

    @property
    def reference(self) -> str:
        return self.reference_arm.name

    # Looks

    @property
    def begun_seeds(self) -> list[int]:
        """Return the seeds with which any arm is trained, in the plan's order."""
        begun = {run.seed for run in self.final_runs()}
        return [seed for seed in self.seeds if seed in begun]

    @property
    def kept_seeds(self) -> list[int]:
        """Return the seeds that stay when others are added: after the end only those that were begun."""
        return self.begun_seeds if self.is_over else list(self.seeds)

    @property
    def earlier_ends(self) -> list[int]:
        """Return the numbers of seeds with which it had ended before seeds were added."""
        ends = [addition["ended_with"] for addition in self.additions]
        return [end for end in ends if end is not None]

    @property
    def look_sizes(self) -> list[int]:
        """Return the number of seeds at each look of the plan."""
        return look_sizes(len(self.seeds), self.earlier_ends)

    @property
    def looks(self) -> list[list[int]]:
        """Return the seeds at each look so far; the last one has all that were begun."""
        begun = self.begun_seeds
        return [begun[:size] for size in look_sizes(len(begun), self.earlier_ends)]

    @property
    def lower_is_better(self) -> bool:
        return is_lower_better(self.metric)

    @property
    def metric_label(self) -> str:
        return metric_label(self.metric)

    @property
    def margin_words(self) -> str:
        return format_difference(self, self.margin)

    @property
    def remaining_seconds(self) -> float:
        """Return the forecast seconds of runs that are not queued yet and of adapters without scores."""
        if self.is_over:
            return 0.0
        training = max(0.0, self.forecast_seconds - seconds_queued(self))
        return self._within_limit(training + remaining_scoring_seconds(self))

    @property
    def whole_forecast(self) -> float:
        """Return the forecast seconds of all its training and scoring."""
        return self._within_limit(self.forecast_seconds + scoring_forecast(self))

    def _within_limit(self, seconds: float) -> float:
        return seconds if self.max_hours is None else min(seconds, self.max_hours * HOUR)

    # Progress

    def advance(self) -> None:
        """Queue what the ended jobs allow; write the result when nothing is left. Idempotent."""
        is_complete = True
        look = None if self.cancelled_at else due_look(self)
        try:
            with transaction.atomic():
                self.lock()
                if not self.cancelled_at:
                    is_complete = queue_next(self, look)
        except (SpecError, TargetError) as changed:
            # The base model or a config has changed since the launch: compare what has finished.
            self.request_cancel(reason=changed.message)
        if is_complete and self.finished_at is None and not self.has_open_jobs():
            self._conclude()

    def lock(self) -> None:
        """Lock and reload the row; without the lock two callers would queue the same seed."""
        choices = Study.objects.select_related("project", "created_by", "dataset_version", "base_model")
        self.refresh_from_db(from_queryset=choices.select_for_update(of=("self",)))

    def has_open_jobs(self) -> bool:
        return self.jobs().exclude(state__in=TERMINAL).exists()

    def _conclude(self) -> None:
        """Write the result and the end."""
        from dashboard.models.studies.results.export import summary_of

        # Outside of the lock: the arithmetic takes a second, and a second caller computes the same numbers.
        ended = Study.objects.with_facts().get(pk=self.pk)
        ended.result = result_of(ended)
        # Forms read it at every change; without it they would read the size of every run.
        ended.result = dataclasses.replace(ended.result, recommended=recommended_arm(ended))
        ended.finished_at = ended.finished_at or timezone.now()
        ended.stored_summary = {}
        fields = {"stored_result": ended.result.to_dict(), "stored_summary": summary_of(ended)}
        with transaction.atomic():
            Study.objects.select_for_update().get(pk=self.pk)
            if not self.has_open_jobs():
                Study.objects.filter(pk=self.pk, finished_at=None).update(**fields, finished_at=Now())
                RunScore.objects.refresh(self.runs().values_list("pk", flat=True))
        self.refresh_from_db(fields=[*fields, "finished_at"])

    @property
    def train_rows(self) -> int:
        return int(self.dataset_version.splits.get("train", 0))

    def request_cancel(self, by: User | None = None, *, reason: str = "") -> bool:
        """Stop the study and compare what has finished. Return False if it had ended."""
        if not self.stop(by, reason=reason):
            return False
        self.advance()
        return True

    def stop(self, by: User | None = None, *, reason: str = "") -> bool:
        """Request the stop of every job in one transaction. Return False if the study had ended.

        Finished runs keep their adapters. `reason`: why the study stops without a user; stops that a user
        has requested already, perhaps with a checkpoint to keep, are left alone. Call `advance` afterwards.
        """
        with transaction.atomic():
            self.lock()
            if self.finished_at:
                return False
            Study.objects.filter(pk=self.pk, cancelled_at=None).update(cancelled_at=Now(), stop_reason=reason)
            self.refresh_from_db(fields=["cancelled_at", "stop_reason"])
            # Every caller that changes several jobs locks the project first, which rules out deadlocks.
            self.project.hold()
            open_ones = self.jobs().exclude(state__in=TERMINAL).values("pk")
            # Locked, so that no other stop request comes between reading a job and stopping it.
            for job in Job.objects.select_for_update().filter(pk__in=open_ones).order_by("pk"):
                if not (reason and job.is_stop_requested):
                    job.request_cancel(by)
        return True

    def reopen(self) -> float:
        """Continue after a run was queued again; return the forecast seconds of what follows besides it.

        The caller holds the lock. Raises SpecError or TargetError if the study cannot continue.
        """
        had_ended = self.finished_at is not None
        self.finished_at, self.cancelled_at, self.stop_reason = None, None, ""
        self.save(update_fields=["finished_at", "cancelled_at", "stop_reason"])
        RunScore.objects.filter(run__in=self.runs()).delete()
        if had_ended:
            queue_next(self)
            self.forecast_seconds = seconds_queued(self) + remaining_training_seconds(self)
            self.save(update_fields=["forecast_seconds"])
        return self.remaining_seconds
