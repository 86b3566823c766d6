"""Evaluations: base model or adapter, scored on the same held-out rows, item by item."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.db import models, transaction
from django.utils.translation import gettext_lazy as _

from dashboard.models.adapter import Adapter
from dashboard.models.base_model import BaseModel
from dashboard.models.dataset import DatasetVersion
from dashboard.models.job import Job
from dashboard.models.job_state import State
from dashboard.models.project import Project, ProjectQuerySet
from dashboard.models.training_run import TrainingRun
from workers.specs import EvalSpec, to_dict

if TYPE_CHECKING:
    from dashboard.models.study import Study
    from dashboard.models.user import User

# Enough to know how often two adapters disagree, and little enough to ask while somebody types.
EVALUATIONS_LOOKED_AT, ROWS_LOOKED_AT = 4, 500


class EvaluationQuerySet(ProjectQuerySet["Evaluation"]):
    """Evaluations by run and state."""

    def ended(self) -> EvaluationQuerySet:
        """Those with results."""
        return self.filter(job__state=State.SUCCEEDED)

    def submit(self, adapter: Adapter, by: User | None) -> Job:
        """Queue one job that scores base and adapter on the same test rows: two rows, one job."""
        run = adapter.run
        spec = EvalSpec(
            base=run.base_model.spec(),
            data=run.dataset_version.spec(),
            adapters={subject_name(run): str(adapter.path())},
            load_in_4bit=run.in_4bit,
            max_length=run.hyperparameters["max_length"],
            seed=run.hyperparameters["seed"],
        )
        with transaction.atomic():
            job = Job.objects.submit(Job.Kind.EVALUATE, to_dict(spec), project=run.project, by=by)
            for subject in Evaluation.Subject:
                self.create(
                    project=run.project,
                    run=run,
                    job=job,
                    subject=subject,
                    adapter=adapter if subject == Evaluation.Subject.ADAPTER else None,
                    base_model=run.base_model,
                    dataset_version=run.dataset_version,
                    split=spec.split,
                )
        return job

    def submit_for_study(
        self,
        adapters: Sequence[Adapter],
        *,
        by: User | None,
        max_rows: int,
        with_base: bool,
        metric: str = "",
        pattern: str = "",
    ) -> Job:
        """Queue one job that scores the adapters of a study's arms on the same rows, perhaps the base too."""
        first = adapters[0].run
        spec = EvalSpec(
            base=first.base_model.spec(),
            data=first.dataset_version.spec(),
            adapters={subject_name(adapter.run): str(adapter.path()) for adapter in adapters},
            with_base=with_base,
            load_in_4bit=first.in_4bit,
            metric=metric,
            pattern=pattern,
            max_rows=max_rows,
            max_length=first.hyperparameters["max_length"],
        )
        with transaction.atomic():
            job = Job.objects.submit(Job.Kind.EVALUATE, to_dict(spec), project=first.project, by=by)
            subjects = [(adapter.run, adapter) for adapter in adapters]
            for run, adapter in [(first, None)] * with_base + subjects:
                self.create(
                    project=run.project,
                    run=run,
                    job=job,
                    subject=Evaluation.Subject.ADAPTER if adapter else Evaluation.Subject.BASE,
                    adapter=adapter,
                    base_model=run.base_model,
                    dataset_version=run.dataset_version,
                    split=spec.split,
                )
        return job

    def of_study(self, study: Study) -> EvaluationQuerySet:
        """Those with results that count in a study: of its base model, and of its arms as they are now."""
        base = models.Q(run__study_arm__study=study, subject=Evaluation.Subject.BASE)
        return self.ended().filter(base | models.Q(run__in=study.final_runs()))

    def bases_of(self, studies: Iterable[Study]) -> dict[int, Evaluation]:
        """The newest result of each study's base model, by the study's number."""
        bases = self.ended().filter(subject=Evaluation.Subject.BASE, run__study_arm__study__in=studies)
        found = bases.select_related("run__study_arm").order_by("pk")
        return {one.run.study_arm.study_id: one for one in found if one.run.study_arm}

    def of_base(self, study: Study) -> EvaluationQuerySet:
        """The base model's evaluation within a study, unless it came to nothing."""
        return self.filter(run__study_arm__study=study, subject=Evaluation.Subject.BASE).exclude(
            job__state__in=[State.FAILED, State.CANCELLED]
        )


def subject_name(run: TrainingRun) -> str:
    """What the engine calls the adapter of a run among those it scores."""
    return f"run-{run.pk}"


def adapter_evaluation(run: TrainingRun) -> Evaluation | None:
    """What counts of its adapter's evaluations: the newest with results, else the newest; None if unasked."""
    found = [one for one in run.evaluations.all() if one.subject == Evaluation.Subject.ADAPTER]
    return max(found, key=lambda one: (one.state == State.SUCCEEDED, one.pk), default=None)


class Evaluation(models.Model):
    """One subject on one split. Items are kept, so that two evaluations can be compared in pairs."""

    class Subject(models.TextChoices):
        BASE = "base", _("Base model")
        ADAPTER = "adapter", _("Adapter")

    project = models.ForeignKey(Project, models.CASCADE, related_name="evaluations")
    run = models.ForeignKey(TrainingRun, models.CASCADE, related_name="evaluations")
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="evaluations")
    subject = models.CharField(max_length=10, choices=Subject.choices)
    adapter = models.ForeignKey(Adapter, models.CASCADE, null=True, blank=True, related_name="evaluations")
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="evaluations")
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="evaluations")
    split = models.CharField(max_length=12)
    rows = models.PositiveIntegerField(null=True, blank=True)
    metrics = models.JSONField(default=dict)
    # Version, SHA-256 and choices of the general questions, and a mark of 0 or 1 for each; {} if not asked.
    general_questions = models.JSONField(default=dict)
    # The latest judge evaluation of its answers, if any.
    judge_evaluation = models.ForeignKey(
        "dashboard.JudgeEvaluation", models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = EvaluationQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"{self.get_subject_display()} on {self.split} of {self.dataset_version}"

    @property
    def state(self) -> str:
        """Its job's state."""
        return self.job.state if self.job else State.QUEUED

    @property
    def error(self) -> dict[str, str] | None:
        """Why it failed, or None."""
        return self.job.error if self.job else None

    @property
    def key(self) -> str:
        """Its name in the engine's result."""
        return str(self.Subject.BASE) if self.subject == self.Subject.BASE else subject_name(self.run)

    def record_result(
        self,
        rows: int,
        metrics: dict[str, Any],
        items: list[dict[str, Any]],
        general_questions: dict[str, Any] | None = None,
    ) -> None:
        """Store metrics and items; a repeated attempt replaces what an earlier one wrote."""
        with transaction.atomic():
            self.items.all().delete()
            self.rows, self.metrics, self.general_questions = rows, metrics, general_questions or {}
            self.save(update_fields=["rows", "metrics", "general_questions"])
            EvaluationItem.objects.bulk_create(
                [
                    EvaluationItem(
                        evaluation=self,
                        row=item["row"],
                        group=item.get("group"),
                        prompt=item["prompt"],
                        expected=item["expected"],
                        output=item["output"],
                        scores=item["scores"],
                    )
                    for item in items
                ]
            )

    def facts(self) -> dict[str, Any]:
        """What eval.json says of it."""
        return {
            "subject": self.subject,
            "dataset": str(self.dataset_version),
            "dataset_sha256": self.dataset_version.sha256,
            "split": self.split,
            "rows": self.rows,
            "metrics": self.metrics,
            "general_questions": self.general_questions or None,
        }


class EvaluationItemQuerySet(models.QuerySet["EvaluationItem"]):
    """Items in pairs: what base and adapter answered on the same row."""

    def pairs(self, run: TrainingRun) -> list[tuple[EvaluationItem, EvaluationItem]]:
        """(base's item, adapter's item) of the newest ended evaluation of `run`, in the order of the rows."""
        newest = {one.subject: one for one in run.evaluations.ended().order_by("pk")}
        if len(newest) < len(Evaluation.Subject):
            return []
        base, adapter = (
            {item.row: item for item in self.filter(evaluation=newest[subject])}
            for subject in (Evaluation.Subject.BASE, Evaluation.Subject.ADAPTER)
        )
        return [(base[row], adapter[row]) for row in sorted(base.keys() & adapter.keys())]

    def groups_of(self, evaluation: Evaluation | None) -> dict[int, int]:
        """Row -> the first row of those that it belongs together with; rows that nobody has grouped miss."""
        found = self.filter(evaluation=evaluation) if evaluation else self.none()
        return {row: group for row, group in found.values_list("row", "group") if group is not None}

    def variance_between(self, version: DatasetVersion, metric: str) -> float | None:
        """How far two adapters' scores of one row lie apart: the variance of that difference.

        For right-or-wrong scores it is about the share of rows on which the two disagree. None before two
        adapters were scored on this data, and where the last ones never disagreed, which says little.
        """
        scored = Evaluation.objects.ended().filter(
            dataset_version=version, subject=Evaluation.Subject.ADAPTER
        )
        newest = {one.run_id: one.pk for one in scored.order_by("pk")}
        tables = [
            {
                row: float(scores[metric])
                for row, scores in self.filter(evaluation=pk).values_list("row", "scores")[:ROWS_LOOKED_AT]
                if metric in scores
            }
            for pk in sorted(newest.values())[-EVALUATIONS_LOOKED_AT:]
        ]
        found = []
        for one, other in itertools.combinations(tables, 2):
            differences = [one[row] - other[row] for row in one.keys() & other.keys()]
            if len(differences) > 1:
                found.append(statistics.variance(differences))
        return statistics.fmean(found) or None if found else None


class EvaluationItem(models.Model):
    """One held-out row: what was asked, what was expected, what came out, and its scores."""

    evaluation = models.ForeignKey(Evaluation, models.CASCADE, related_name="items")
    row = models.PositiveIntegerField()
    # The first row of those that it belongs together with; its own number, or none in older ones, if alone.
    group = models.PositiveIntegerField(null=True, blank=True)
    prompt = models.TextField()
    expected = models.TextField()
    output = models.TextField()
    scores = models.JSONField(default=dict)

    objects = EvaluationItemQuerySet.as_manager()

    class Meta:
        ordering = ["evaluation", "row"]
        constraints = [
            models.UniqueConstraint(fields=["evaluation", "row"], name="evaluation_item_once_per_row")
        ]

    def __str__(self) -> str:
        return f"row {self.row} of evaluation {self.evaluation_id}"

    @property
    def is_right(self) -> bool:
        """Whether the answer equals the expected one."""
        return bool(self.scores.get("exact_match"))
