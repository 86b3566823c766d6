"""Evaluations of base models and adapters on the same rows, item by item."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.db import models, transaction
from django.db.models.functions import Length
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import State
from dashboard.models.training.training_run import TrainingRun
from workers.contract.specs import EvalSpec, to_dict

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.studies.study import Study

# The newest arms, their seeds and rows that a variance is estimated from: fast enough while a user types.
VARIANCE_ARMS, VARIANCE_SEEDS, VARIANCE_ROWS = 4, 3, 500


class EvaluationQuerySet(ProjectQuerySet["Evaluation"]):
    """Evaluations by study and state."""

    def ended(self) -> EvaluationQuerySet:
        """Filter those with results."""
        return self.filter(job__state=State.SUCCEEDED)

    def submit(self, adapter: Adapter, by: User | None) -> Job:
        """Queue one job that evaluates an adapter and its base model on the same test rows."""
        return self._submit([adapter], by, with_base=True, seed=adapter.run.hyperparameters["seed"])

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
        """Queue one job that evaluates adapters of a study's arms on the same rows."""
        return self._submit(
            adapters, by, with_base=with_base, max_rows=max_rows, metric=metric, pattern=pattern
        )

    def _submit(
        self, adapters: Sequence[Adapter], by: User | None, *, with_base: bool, **options: Any
    ) -> Job:
        """Create the job, and a row for each of its subjects."""
        first = adapters[0].run
        spec = EvalSpec(
            base=first.base_model.spec(),
            data=first.dataset_version.spec(),
            adapters={subject_name(adapter.run): str(adapter.path()) for adapter in adapters},
            with_base=with_base,
            load_in_4bit=first.in_4bit,
            max_length=first.hyperparameters["max_length"],
            **options,
        )
        subjects: list[tuple[TrainingRun, Adapter | None]] = [(first, None)] if with_base else []
        subjects += [(adapter.run, adapter) for adapter in adapters]
        with transaction.atomic():
            job = Job.objects.submit(Job.Kind.EVALUATE, to_dict(spec), project=first.project, by=by)
            for run, adapter in subjects:
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
        """Filter those with results that count in a study: of its base model and of its arms' final runs."""
        base = models.Q(run__study_arm__study=study, subject=Evaluation.Subject.BASE)
        return self.ended().filter(base | models.Q(run__in=study.final_runs()))

    def base_by_study(self, studies: Iterable[Study]) -> dict[int, Evaluation]:
        """Return the newest result of each study's base model, by the study's number."""
        bases = self.ended().filter(subject=Evaluation.Subject.BASE, run__study_arm__study__in=studies)
        bases = bases.select_related("run__study_arm").order_by("pk")
        return {base.run.study_arm.study_id: base for base in bases if base.run.study_arm}

    def active_base_of(self, study: Study) -> EvaluationQuerySet:
        """Filter the evaluation of a study's base model, unless it failed or was cancelled."""
        return self.filter(run__study_arm__study=study, subject=Evaluation.Subject.BASE).exclude(
            job__state__in=[State.FAILED, State.CANCELLED]
        )


def subject_name(run: TrainingRun) -> str:
    """Return the name of a run's adapter in the engine's spec and result."""
    return f"run-{run.pk}"


def adapter_evaluation(run: TrainingRun) -> Evaluation | None:
    """Return the evaluation of a run's adapter that counts: the newest with results, else the newest."""
    evaluations = [
        evaluation for evaluation in run.evaluations.all() if evaluation.subject == Evaluation.Subject.ADAPTER
    ]
    return max(
        evaluations, key=lambda evaluation: (evaluation.state == State.SUCCEEDED, evaluation.pk), default=None
    )


class Evaluation(models.Model):
    """One subject evaluated on one split, with an item for each row."""

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
    # The latest job that asked the judge about its answers, if any.
    judge_job = models.ForeignKey(
        Job, models.SET_NULL, null=True, blank=True, related_name="judged_evaluations"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = EvaluationQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"{self.get_subject_display()} on {self.split} of {self.dataset_version}"

    @property
    def state(self) -> str:
        return self.job.state if self.job else State.QUEUED

    @property
    def error(self) -> dict[str, str] | None:
        return self.job.error if self.job else None

    @property
    def key(self) -> str:
        """Return its name in the engine's result."""
        return str(self.Subject.BASE) if self.subject == self.Subject.BASE else subject_name(self.run)

    def record_result(
        self,
        rows: int,
        metrics: dict[str, Any],
        items: list[dict[str, Any]],
        general_questions: dict[str, Any] | None = None,
    ) -> None:
        """Store metrics and items in place of those of an earlier attempt."""
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
        """Return its entry in eval.json."""
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
    """Items in pairs of base model and adapter."""

    def pairs(self, run: TrainingRun) -> list[tuple[EvaluationItem, EvaluationItem]]:
        """Return (base item, adapter item) of the newest ended evaluations of a run, in order of rows."""
        newest = {evaluation.subject: evaluation for evaluation in run.evaluations.ended().order_by("pk")}
        if len(newest) < len(Evaluation.Subject):
            return []
        base, adapter = (
            {item.row: item for item in self.filter(evaluation=newest[subject])}
            for subject in (Evaluation.Subject.BASE, Evaluation.Subject.ADAPTER)
        )
        return [(base[row], adapter[row]) for row in sorted(base.keys() & adapter.keys())]

    def shortest_difference(
        self, base: Evaluation, adapter: Evaluation, letters: int
    ) -> tuple[EvaluationItem, EvaluationItem] | None:
        """Return (base item, adapter item) of the row with the shortest prompt whose answers differ.

        None if no answer to a prompt of at most `letters` letters differs.
        """
        theirs = self.filter(evaluation=base, row=models.OuterRef("row")).values("output")[:1]
        items = self.filter(evaluation=adapter).annotate(
            letters=Length("prompt"), base_output=models.Subquery(theirs)
        )
        different = items.filter(letters__lte=letters).exclude(base_output=None)
        item = different.exclude(output=models.F("base_output")).order_by("letters", "row").first()
        return None if item is None else (self.get(evaluation=base, row=item.row), item)

    def groups_of(self, evaluation: Evaluation | None) -> dict[int, int]:
        """Return the group of each row, as the number of its first row; rows without a group are left out."""
        items = self.filter(evaluation=evaluation) if evaluation else self.none()
        return {row: group for row, group in items.values_list("row", "group") if group is not None}

    def variance_of_difference(self, version: DatasetVersion, metric: str) -> float | None:
        """Return the variance of the difference between two arms' scores of one row, means over their seeds.

        For 0-or-1 scores it is about the share of rows on which the two disagree. A run outside of a study is
        an arm by itself. None before two arms were evaluated on this data, and if the last ones never
        disagreed, which says little.
        """
        ended = Evaluation.objects.ended().filter(dataset_version=version, subject=Evaluation.Subject.ADAPTER)
        ordered = ended.order_by("pk").values_list("run", "run__study_arm", "pk")
        newest = {run: (arm or -run, pk) for run, arm, pk in ordered}
        by_arm: dict[int, list[int]] = {}
        for arm, pk in sorted(newest.values(), key=lambda pair: pair[1]):
            by_arm.setdefault(arm, []).append(pk)
        newest_arms = sorted(by_arm.values(), key=max)[-VARIANCE_ARMS:]
        tables = [self._mean_scores(pks[-VARIANCE_SEEDS:], metric) for pks in newest_arms]
        variances = []
        for first, second in itertools.combinations(tables, 2):
            differences = [first[row] - second[row] for row in first.keys() & second.keys()]
            if len(differences) > 1:
                variances.append(statistics.variance(differences))
        return statistics.fmean(variances) or None if variances else None

    def _mean_scores(self, evaluations: Sequence[int], metric: str) -> dict[int, float]:
        """Return row -> mean score, of the first rows that all of the evaluations have."""
        tables = [
            dict(
                self.filter(evaluation=pk, scores__has_key=metric).values_list("row", f"scores__{metric}")[
                    :VARIANCE_ROWS
                ]
            )
            for pk in evaluations
        ]
        rows = set(tables[0]).intersection(*tables)
        return {row: statistics.fmean(table[row] for table in tables) for row in rows}


class EvaluationItem(models.Model):
    """The prompt, expected answer, output and scores of one row."""

    evaluation = models.ForeignKey(Evaluation, models.CASCADE, related_name="items")
    row = models.PositiveIntegerField()
    # The number of the first row of its group; its own number for a row without a group.
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
        """Return whether the answer equals the expected one."""
        return bool(self.scores.get("exact_match"))
