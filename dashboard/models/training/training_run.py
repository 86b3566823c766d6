"""Training runs: one arm each, frozen into a TrainSpec before the launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.db import models, transaction
from django.db.models.fields.json import KT
from django.db.models.functions import Cast
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.catalog.target_module_config import TargetModuleConfig
from dashboard.models.jobs.compute_budget import require_budget
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import State
from dashboard.models.jobs.webhook import WebhookDelivery
from dashboard.models.jobs.worker_node import require_4bit_worker
from dashboard.models.training.checks import check_choices, confirmation_request
from dashboard.models.training.forecast import forecast_run
from dashboard.models.training.record_calibration import record_calibration
from dashboard.models.training.resume import resume_run
from dashboard.models.training.tag import Tag
from workers.contract.errors import SpecError
from workers.contract.hyperparameters import Hyperparameters, frozen_hyperparameters
from workers.contract.specs import TrainSpec, digest_spec, to_dict
from workers.forecasting.training_cost import expected_seconds
from workers.target_modules.resolution import target_spec

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

# Measured by the engine; with these equal, equal settings give an equal adapter.
RECORDED = ("tokenizer_sha256", "chat_template_sha256", "versions", "device", "dtype", "threads", "attempt")


class TrainingRunQuerySet(ProjectQuerySet["TrainingRun"]):
    """Runs with what lists and pages show."""

    def with_facts(self) -> TrainingRunQuerySet:
        """Join everything that a row of a list names."""
        return self.select_related(
            "job",
            "base_model",
            "dataset_version__dataset",
            "validation_version__dataset",
            "target_module_config",
            "adapter",
            "created_by",
            "confirmed_by",
            "project",
        )

    def with_scores(self) -> TrainingRunQuerySet:
        """Prefetch evaluations and their jobs, for `scores` and `is_settled`."""
        # By name, because evaluations know runs and not the other way round.
        evaluations = apps.get_model("dashboard", "Evaluation").objects
        return self.prefetch_related(models.Prefetch("evaluations", evaluations.with_jobs()))

    def in_group(self, group: str) -> TrainingRunQuerySet:
        """Filter by `active`, `finished` or an outcome."""
        if group == "active":
            return self.active()
        if group == "finished":
            return self.filter(outcome__in=["succeeded", "stopped_early"])
        return self.filter(outcome=group)

    def active(self) -> TrainingRunQuerySet:
        """Filter runs that are queued or being trained."""
        return (
            self.filter(outcome="")
            .exclude(job=None)
            .exclude(job__state__in=[State.SUCCEEDED, State.FAILED, State.CANCELLED])
        )

    def finished_equal(self, run: TrainingRun) -> TrainingRun | None:
        """Return the newest finished run of the project with an equal spec and an adapter, or None.

        Runs of a study that goes on are left out, because their scores are sealed.
        """
        open_scores = models.Q(study_arm=None) | models.Q(study_arm__study__finished_at__isnull=False)
        equal = self.filter(
            open_scores,
            project=run.project,
            spec_digest=run.spec_digest,
            outcome="succeeded",
            adjustments=[],
            reused_from=None,
            adapter__isnull=False,
        )
        found = equal.exclude(spec_digest="").select_related("adapter").order_by("-pk")
        return next((equal_run for equal_run in found if equal_run.adapter.path().is_dir()), None)

    def launched_with(self, project: Project, idempotency_key: str) -> TrainingRun | None:
        """Return the run that an earlier request with this key started, if any."""
        job = Job.objects.find_by_idempotency_key(project, idempotency_key)
        return self.filter(job=job).first() if job else None


class TrainingRun(models.Model):
    """One arm: base model, dataset version, target modules and hyperparameters, frozen in `spec`.

    Its state is its own outcome, else its job's state.
    """

    class Outcome(models.TextChoices):
        SUCCEEDED = "succeeded", _("Finished")
        FAILED = "failed", _("Failed")
        CANCELLED = "cancelled", _("Stopped")
        STOPPED_EARLY = "stopped_early", _("Stopped early, best kept")

    project = models.ForeignKey(Project, models.CASCADE, related_name="training_runs")
    name = models.CharField(_("name"), max_length=120)
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="training_runs")
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="training_runs")
    # All of its rows are the validation rows; None for those of `dataset_version`.
    validation_version = models.ForeignKey(
        DatasetVersion, models.PROTECT, null=True, blank=True, related_name="validated_runs"
    )
    target_module_config = models.ForeignKey(TargetModuleConfig, models.PROTECT, related_name="training_runs")
    # The study arm it belongs to; `rung` is set for short runs that search for the arm's learning rate.
    study_arm = models.ForeignKey(
        "dashboard.StudyArm", models.SET_NULL, null=True, blank=True, related_name="runs"
    )
    rung = models.PositiveSmallIntegerField(null=True, blank=True)
    spec = models.JSONField(default=dict)
    # Equal digests mean equal work; "" if that cannot be told.
    spec_digest = models.CharField(max_length=64, blank=True)
    # The finished run whose adapter a study uses in place of training this one.
    reused_from = models.ForeignKey("self", models.PROTECT, null=True, blank=True, related_name="reuses")
    forecast = models.JSONField(default=dict)
    # The expected seconds of the forecast, for the queue's estimates to read without the JSON.
    forecast_seconds = models.GeneratedField(
        expression=Cast(KT("forecast__seconds__expected"), models.FloatField()),
        output_field=models.FloatField(null=True),
        db_persist=True,
    )
    measured = models.JSONField(default=dict)
    # Automatic changes: {"reason": code, "attempt": n, "changes": {name: [old, new]}} each.
    adjustments = models.JSONField(default=list)
    # Pairs of texts that a program attached to its job.
    metadata = models.JSONField(default=dict)
    # Warnings about the target modules that the user confirmed.
    confirmations = models.JSONField(default=list)
    confirmed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="training_runs")
    outcome = models.CharField(max_length=14, choices=Outcome.choices, blank=True)
    error_code = models.CharField(max_length=40, blank=True)
    error_message = models.TextField(blank=True)
    ended_step = models.PositiveIntegerField(null=True, blank=True)
    training_seconds = models.FloatField(null=True, blank=True)  # measured["seconds"], for lists to sort by
    tags = models.ManyToManyField(Tag, blank=True, related_name="training_runs")
    note = models.TextField(blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TrainingRunQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["project", "-id"]),
            models.Index(fields=["project", "spec_digest"]),
            models.Index(fields=["project", "training_seconds"]),
            models.Index(fields=["project", "created_at", "reused_from", "outcome", "error_code"]),
            models.Index(fields=["project", "name"]),
            # The forms sum the open runs' forecasts at every change, and a project has many ended runs.
            models.Index(fields=["project"], condition=models.Q(outcome=""), name="training_run_open"),
            # The queue's estimates read this index alone.
            models.Index(fields=["job", "forecast_seconds"]),
        ]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(outcome__in=["", "succeeded", "failed", "cancelled", "stopped_early"]),
                name="training_run_outcome_known",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("training-run-detail", args=[self.reused_from_id or self.pk])

    def freeze(self, hyperparameters: Hyperparameters, *, confirmed: bool = False) -> None:
        """Check that the choices fit together, and build the spec and a default name.

        `confirmed`: the user has accepted the warnings of the target modules. Raises SpecError otherwise.
        """
        check_choices(self, hyperparameters)
        resolution = self.target_module_config.resolve(self.base_model)
        if resolution.refusal:
            raise SpecError("target_module_config", resolution.refusal)
        if resolution.confirmations and not confirmed:
            raise SpecError("confirmed", confirmation_request(resolution.confirmations))
        self.name = self.name or f"{self.dataset_version.dataset.name} {self.target_module_config.name}"[:120]
        self.confirmations = list(resolution.confirmations)
        self.confirmed_by = self.created_by if resolution.confirmations else None
        spec = TrainSpec(
            name=self.name,
            base=self.base_model.spec(),
            data=self.dataset_version.spec(),
            validation_data=self.validation_version.spec() if self.validation_version else None,
            target=target_spec(resolution, hyperparameters),
            hyperparameters=hyperparameters,
            preset=self.target_module_config.name,
        )
        self.spec = to_dict(spec)
        self.spec_digest = digest_spec(self.spec)

    def launch(self, idempotency_key: str = "") -> None:
        """Queue the frozen run: run, job and outbox in one transaction.

        Raises SpecError if no worker supports its base model in 4 bits, OverBudget if the month has no room.
        """
        if self.in_4bit:
            require_4bit_worker()
        by, self.forecast = self.created_by, forecast_run(self)
        with transaction.atomic():
            self.job = Job.objects.submit(
                Job.Kind.TRAIN, self.spec, project=self.project, by=by, idempotency_key=idempotency_key
            )
            self.save()
            require_budget(self.project, self.seconds_left, by)

    @property
    def state(self) -> str:
        """Return its own outcome, else its job's state; `draft` without a job."""
        return self.outcome or (self.job.state if self.job else "draft")

    @property
    def is_over(self) -> bool:
        """Return whether the training has ended."""
        return bool(self.outcome) or (self.job is not None and self.job.is_over)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Return the resolved hyperparameters of the frozen spec."""
        return dict(self.spec.get("hyperparameters", {}))

    @property
    def in_4bit(self) -> bool:
        """Return whether the adapter is trained on a base model in 4 bits."""
        return bool(self.hyperparameters.get("load_in_4bit"))

    @property
    def requires_dedicated_base(self) -> bool:
        """Return whether its adapter cannot share a loaded base model with others."""
        on_experts = bool(self.spec.get("target", {}).get("target_parameters"))
        return on_experts or bool(self.hyperparameters.get("use_dora"))

    @property
    def seed(self) -> int:
        """Return the random seed."""
        return int(self.hyperparameters.get("seed", 0))

    @property
    def effective_settings(self) -> dict[str, Any]:
        """Return the hyperparameters of its last attempt, automatic changes included."""
        changes = [change for adjustment in self.adjustments for change in adjustment["changes"].items()]
        return {**self.hyperparameters, **{name: values[1] for name, values in changes}}

    @property
    def origin(self) -> dict[str, Any]:
        """Return what reproduces it: settings, hashes, versions, device. Unknown values are None."""
        base, data = self.spec.get("base", {}), self.spec.get("data", {})
        return {
            "hyperparameters": self.effective_settings,
            "target_modules": self.spec.get("target", {}),
            "base_model": base.get("name"),
            "base_revision": base.get("revision"),
            "base_sha256": base.get("sha256") or None,
            "dataset_sha256": data.get("sha256"),
            "validation_sha256": (self.spec.get("validation_data") or {}).get("sha256"),
            "test_sha256": data.get("test_sha256") or None,
            "seed": self.seed,
            **{name: self.measured.get(name) for name in RECORDED},
        }

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps of the whole run."""
        settings_ = frozen_hyperparameters(self.hyperparameters)
        return settings_.total_steps(self.dataset_version.splits.get("train", 0))

    @property
    def available_validation_rows(self) -> int:
        """Return the rows that its validation rows are drawn from."""
        if self.validation_version:
            return sum(self.validation_version.splits.values())
        return int(self.dataset_version.splits.get("validation", 0))

    @property
    def step(self) -> int:
        """Return the completed optimizer steps."""
        if self.ended_step is not None:
            return self.ended_step
        return self.job.step if self.job and self.job.phase == "training" else self.trained_step

    @property
    def trained_step(self) -> int:
        """Return the last step with a stored training loss."""
        # Filtered in Python, so that prefetched curves are used.
        losses = (series.last_step for series in self.metric_series.all() if series.name == "train/loss")
        return next(losses, 0)

    @property
    def seconds_left(self) -> float:
        """Return the rest of its forecast training time."""
        expected = expected_seconds(self.forecast)
        return expected * max(0.0, 1 - self.trained_step / max(1, self.total_steps))

    @property
    def error(self) -> dict[str, str] | None:
        """Return code and message of its failure, or None."""
        if self.state != State.FAILED:
            return None
        if self.error_code:
            return {"code": self.error_code, "message": self.error_message}
        return self.job.error if self.job else None

    @property
    def resumable_from(self) -> int | None:
        """Return the step of the checkpoint that it can be resumed from, or None."""
        ended = self.outcome in (self.Outcome.CANCELLED, self.Outcome.FAILED)
        ended = ended and self.error_code != "diverged"
        # The checkpoint is read from disk, so only if the rows allow it.
        allowed = ended and self.job is not None and self.job.is_over and self.job.keeps_checkpoint
        return self.job.checkpoint_step() if allowed and self.job else None

    def resume(self, by: User | None = None) -> None:
        """Continue it, and the runs stopped with it, from the checkpoint.

        Raises IllegalMove if it cannot be resumed, OverBudget if the month has no room for the rest.
        """
        resume_run(self, by)

    @property
    def is_settled(self) -> bool:
        """Return whether the run and its evaluations have ended."""
        return self.is_over and all(
            evaluation.job is None or evaluation.job.is_over for evaluation in self.evaluations.all()
        )

    def scores(self) -> dict[str, dict[str, Any]]:
        """Return the metrics of the last finished evaluation of `adapter`, and of `base` on the same rows."""
        ended = [
            evaluation
            for evaluation in self.evaluations.all()
            if evaluation.adapter_id and evaluation.state == State.SUCCEEDED
        ]
        return max(ended, key=lambda evaluation: evaluation.pk).scores() if ended else {}

    def flat_settings(self) -> dict[str, Any]:
        """Return all choices in one flat dict, for tables that compare runs."""
        other_rows = {"validation_dataset": str(self.validation_version)} if self.validation_version else {}
        return {
            "dataset": str(self.dataset_version),
            **other_rows,
            "base_model": self.base_model.hub_id,
            "target_modules": self.target_module_config.name,
            **self.hyperparameters,
        }

    def end(
        self,
        outcome: str,
        *,
        step: int,
        code: str = "",
        message: str = "",
        measured: dict[str, Any] | None = None,
    ) -> None:
        """Store the outcome once; a second call changes nothing."""
        self.measured = measured or {}
        with transaction.atomic():
            changed = TrainingRun.objects.filter(pk=self.pk, outcome="").update(
                outcome=outcome,
                ended_step=step,
                error_code=code,
                error_message=message,
                measured=self.measured,
                training_seconds=self.measured.get("seconds"),
            )
            if changed:
                self.refresh_from_db()
                WebhookDelivery.objects.announce([self])
        if changed and outcome == self.Outcome.SUCCEEDED:
            record_calibration(self)
