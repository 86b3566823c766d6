"""Evaluations of base models and adapters on the same rows, item by item."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db import models, transaction
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.run_score import RunScore
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import State
from dashboard.models.training.training_run import TrainingRun
from workers.contract.base_scores import base_scores_key
from workers.contract.specs import EvalSpec, to_dict

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.studies.study import Study


class EvaluationQuerySet(ProjectQuerySet["Evaluation"]):
    """Evaluations by run, study and state."""

    def with_jobs(self) -> EvaluationQuerySet:
        """Join the jobs without the specs of what was scored; fetch the base model's evaluations.

        These are fetched once, because many adapters are compared with the same one.
        """
        bases = Evaluation.objects.select_related("job", "judge_job").defer("job__spec")
        joined = self.select_related("job", "judge_job").defer("job__spec")
        return joined.prefetch_related(models.Prefetch("base_evaluation", bases))

    def ended(self) -> EvaluationQuerySet:
        """Filter those with results."""
        return self.filter(job__state=State.SUCCEEDED)

    def submit(self, adapter: Adapter, by: User | None) -> Job:
        """Queue one job that evaluates an adapter, and its base model unless its scores are kept."""
        run = adapter.run
        return self._submit(run_spec(run), [adapter], by, None)

    def submit_for_study(
        self, study: Study, adapters: Sequence[Adapter], by: User | None, idempotency_key: str = ""
    ) -> Job:
        """Queue one job that evaluates adapters of a study's arms on the study's rows.

        The base model is scored by the first of these jobs, unless its scores are kept.
        """
        spec = study_spec(study, adapters[0].run)
        pending = self.active_base_of(study).filter(number_format="").order_by("-pk").first()
        with transaction.atomic():
            job = self._submit(spec, adapters, by, pending, idempotency_key)
            # Adapters that were scored beside a failed evaluation of the base model get the new one.
            (base,) = set(job.evaluations.exclude(adapter=None).values_list("base_evaluation", flat=True))
            scored = self.filter(run__study_arm__study=study).exclude(adapter=None)
            active = self.active_base_of(study).values("pk")
            scored.exclude(base_evaluation__in=active).update(base_evaluation=base)
        return job

    def _submit(
        self,
        spec: EvalSpec,
        adapters: Sequence[Adapter],
        by: User | None,
        pending: Evaluation | None,
        idempotency_key: str = "",
    ) -> Job:
        """Create the job and a row for each of its subjects. `pending`: the base model's, by another job."""
        first = adapters[0].run
        kept = self.kept_base(first.base_model, first.dataset_version, spec)
        spec = dataclasses.replace(
            spec,
            adapters={subject_name(adapter.run): str(adapter.path()) for adapter in adapters},
            with_base=pending is None,
            kept_formats=tuple(row.number_format for row in kept),
        )
        base = pending or (kept[-1] if kept else None)
        with transaction.atomic():
            job = Job.objects.submit(
                Job.Kind.EVALUATE,
                to_dict(spec),
                project=first.project,
                by=by,
                idempotency_key=idempotency_key,
            )
            base = base or self._add(first, job, spec)
            for adapter in adapters:
                self._add(adapter.run, job, spec, adapter=adapter, base_evaluation=base)
        return job

    def _add(
        self, run: TrainingRun, job: Job, spec: EvalSpec, adapter: Adapter | None = None, **values: Any
    ) -> Evaluation:
        if adapter is None:
            values["key"] = base_scores_key(spec, test_rows(run.dataset_version))
        return self.create(
            project=run.project,
            run=run,
            job=job,
            subject=Evaluation.Subject.ADAPTER if adapter else Evaluation.Subject.BASE,
            adapter=adapter,
            base_model=run.base_model,
            dataset_version=run.dataset_version,
            split=spec.split,
            **values,
        )

    # The base model's scores, which are kept and computed once

    def kept_base(self, base_model: BaseModel, version: DatasetVersion, spec: EvalSpec) -> list[Evaluation]:
        """Return the kept scores of the base model on these rows, one for each number format."""
        key = base_scores_key(spec, test_rows(version))
        rows = self.ended().filter(dataset_version=version, base_model=base_model, key=key)
        return list(rows.exclude(number_format="").order_by("pk"))

    def keep_base(self, job: Job, spec: EvalSpec, number_format: str) -> Evaluation | None:
        """Return the base model's evaluation that a finished job fills, or the kept one; link its adapters.

        Only one is kept per key and number format: if another job was faster, its scores stay. None if a
        third job still scores the base model. The caller holds the project.
        """
        own = job.evaluations.filter(subject=Evaluation.Subject.BASE).first()
        adapters = job.evaluations.filter(subject=Evaluation.Subject.ADAPTER)
        first = adapters.select_related("run__dataset_version", "run__base_model").order_by("pk")[0].run
        kept = self.kept_base(first.base_model, first.dataset_version, spec)
        base = next((row for row in kept if row.number_format == number_format), None)
        if base is None and spec.with_base:
            base = own or self._add(first, job, spec)
            base.number_format = number_format
            base.save(update_fields=["number_format"])
        if base:
            adapters.update(base_evaluation=base)
        if own and base and own != base:
            runs = list(own.adapter_evaluations.values_list("run", flat=True))
            own.adapter_evaluations.update(base_evaluation=base)
            own.delete()
            RunScore.objects.refresh(runs)
        return base

    def of_run(self, run: TrainingRun) -> EvaluationQuerySet:
        """Filter those of a run's adapter, and of the base model that it is compared with."""
        own = self.filter(run=run, subject=Evaluation.Subject.ADAPTER)
        bases = models.Q(pk__in=own.values("base_evaluation"))
        return self.filter(bases | models.Q(pk__in=own.values("pk")))

    def of_study(self, study: Study) -> EvaluationQuerySet:
        """Filter those with results that count in a study: of its base model and of its arms' final runs."""
        counted = self.filter(run__in=study.final_runs(), subject=Evaluation.Subject.ADAPTER)
        bases = models.Q(pk__in=counted.values("base_evaluation"))
        return self.ended().filter(bases | models.Q(pk__in=counted.values("pk")))

    def active_base_of(self, study: Study) -> EvaluationQuerySet:
        """Filter the evaluations of a study's base model that neither failed nor were cancelled."""
        linked = self.filter(run__study_arm__study=study).values("base_evaluation")
        return self.filter(pk__in=linked).exclude(job__state__in=[State.FAILED, State.CANCELLED])


def evaluation_spec(base_model: BaseModel, version: DatasetVersion, **options: Any) -> EvalSpec:
    """Return the spec of an evaluation before its adapters are known."""
    return EvalSpec(base=base_model.spec(), data=version.spec(), adapters={"adapter": ""}, **options)


def run_spec(run: TrainingRun) -> EvalSpec:
    """Return the spec that evaluates the adapter of a run outside of a study."""
    return evaluation_spec(
        run.base_model,
        run.dataset_version,
        load_in_4bit=run.in_4bit,
        max_length=run.hyperparameters["max_length"],
        metric=run.dataset_version.main_metric,
    )


def test_rows(version: DatasetVersion) -> int:
    return int(version.splits.get("test", 0))


def study_spec(study: Study, run: TrainingRun) -> EvalSpec:
    """Return the spec that evaluates the adapter of a study's run on the study's rows."""
    return evaluation_spec(
        study.base_model,
        study.dataset_version,
        load_in_4bit=run.in_4bit,
        max_length=run.hyperparameters["max_length"],
        max_rows=study.test_rows,
        metric=study.metric,
        pattern=study.pattern,
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


def base_evaluation(run: TrainingRun) -> Evaluation | None:
    """Return the scores of the base model that a run's adapter is compared with, or None."""
    adapter = adapter_evaluation(run)
    if adapter is None or adapter.state != State.SUCCEEDED or adapter.base_evaluation is None:
        return None
    return adapter.base_evaluation if adapter.base_evaluation.state == State.SUCCEEDED else None


class Evaluation(models.Model):
    """One subject evaluated on one split, with an item for each row.

    The base model's scores do not depend on the run: they are kept under `key` and `number_format`, and the
    evaluations of all adapters on the same rows refer to them.
    """

    class Subject(models.TextChoices):
        BASE = "base", _("Base model")
        ADAPTER = "adapter", _("Adapter")

    project = models.ForeignKey(Project, models.CASCADE, related_name="evaluations")
    # Of the base model: the run whose job scored it first.
    run = models.ForeignKey(TrainingRun, models.CASCADE, related_name="evaluations")
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="evaluations")
    subject = models.CharField(max_length=10, choices=Subject.choices)
    adapter = models.ForeignKey(Adapter, models.CASCADE, null=True, blank=True, related_name="evaluations")
    # The base model's evaluation on the same rows; None for the base model itself.
    base_evaluation = models.ForeignKey(
        "self", models.SET_NULL, null=True, blank=True, related_name="adapter_evaluations"
    )
    # Of the base model: what decides its scores, and the number format in which they are kept, "" before.
    key = models.CharField(max_length=64, blank=True)
    number_format = models.CharField(max_length=160, blank=True)
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="evaluations")
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="evaluations")
    # The evaluation of the reused run that it is a copy of; `job` is then that of the original.
    reused_from = models.ForeignKey("self", models.SET_NULL, null=True, blank=True, related_name="reuses")
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
        constraints = [
            models.UniqueConstraint(
                fields=["dataset_version", "base_model", "key", "number_format"],
                condition=~models.Q(number_format=""),
                name="base_evaluation_kept_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_subject_display()} on {self.split} of {self.dataset_version}"

    @property
    def state(self) -> str:
        return self.job.state if self.job else State.QUEUED

    @property
    def error(self) -> dict[str, str] | None:
        return self.job.error if self.job else None

    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of an adapter and, on the same rows, of its base model: `base`, `adapter`."""
        base = self.base_evaluation
        if base is None or base.state != State.SUCCEEDED:
            return {"adapter": self.metrics}
        metrics = dict(base.metrics)
        if JUDGE in metrics and not self._has_judge_of(base):
            del metrics[JUDGE]
        return {"base": metrics, "adapter": self.metrics}

    def _has_judge_of(self, other: Evaluation) -> bool:
        """Return whether the same judge judged both: verdicts of two do not compare."""
        mine, theirs = self.judge_job, other.judge_job
        if mine is None or theirs is None or mine == theirs:
            return mine == theirs
        return bool(mine.spec["judge"] == theirs.spec["judge"])

    @property
    def subject_name(self) -> str:
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
            item_model = self.items.model
            item_model.objects.bulk_create(
                [
                    item_model(
                        evaluation=self,
                        row=item["row"],
                        group=item.get("group"),
                        system=item.get("system"),
                        prompt=item["prompt"],
                        expected=item["expected"],
                        output=item["output"],
                        scores=item["scores"],
                    )
                    for item in items
                ]
            )
            self.store_scores()

    def store_scores(self) -> None:
        """Store the scores of its run; the base model's count for all adapters on the same rows."""
        runs = self.adapter_evaluations.values_list("run", flat=True)
        RunScore.objects.refresh([self.run_id] if self.adapter_id else list(runs))

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
