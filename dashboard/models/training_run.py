"""Training runs: one arm each, frozen into a TrainSpec when launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models, transaction
from django.urls import reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from dashboard.models.base_model import BaseModel
from dashboard.models.compute_budget import require_budget
from dashboard.models.dataset import DatasetVersion
from dashboard.models.forecast import expected_seconds, forecast_run, record_calibration
from dashboard.models.job import Job
from dashboard.models.job_state import State
from dashboard.models.project import Project, ProjectQuerySet
from dashboard.models.resuming import resume_run
from dashboard.models.target_module_config import TargetModuleConfig
from dashboard.models.worker_node import NO_4BIT_WORKER, WorkerNode
from workers.errors import SpecError
from workers.hyperparameters import Hyperparameters
from workers.specs import TrainSpec, to_dict
from workers.targets import target_spec

if TYPE_CHECKING:
    from dashboard.models.user import User

# What the engine tells of where a run ended: with these the same settings give the same adapter.
RECORDED = ("tokenizer_sha256", "chat_template_sha256", "versions", "device", "dtype", "threads", "attempt")


class TrainingRunQuerySet(ProjectQuerySet["TrainingRun"]):
    """Runs with what lists and pages show."""

    def with_facts(self) -> TrainingRunQuerySet:
        """Everything a row of a list names, in one query."""
        return self.select_related(
            "job",
            "base_model",
            "dataset_version__dataset",
            "target_module_config",
            "adapter",
            "created_by",
            "confirmed_by",
            "project",
        )

    def with_scores(self) -> TrainingRunQuerySet:
        """Evaluations and their jobs fetched in two queries, for `scores` and `is_settled`."""
        return self.prefetch_related("evaluations__job")

    def in_group(self, group: str) -> TrainingRunQuerySet:
        """Runs as lists filter them: `active`, `finished`, or an outcome."""
        if group == "active":
            return self.active()
        if group == "finished":
            return self.filter(outcome__in=["succeeded", "stopped_early"])
        return self.filter(outcome=group)

    def active(self) -> TrainingRunQuerySet:
        """Runs that wait or work."""
        return (
            self.filter(outcome="")
            .exclude(job=None)
            .exclude(job__state__in=[State.SUCCEEDED, State.FAILED, State.CANCELLED])
        )

    def launched_with(self, project: Project, idempotency_key: str) -> TrainingRun | None:
        """The run that an earlier request with this key started, if any."""
        job = Job.objects.find_by_idempotency_key(project, idempotency_key)
        return self.filter(job=job).first() if job else None

    def launch(
        self,
        *,
        project: Project,
        by: User | None,
        name: str,
        dataset_version: DatasetVersion,
        base_model: BaseModel,
        target_module_config: TargetModuleConfig,
        hyperparameters: Hyperparameters,
        confirmed: bool = False,
        idempotency_key: str = "",
    ) -> TrainingRun:
        """Freeze the choices into a spec and queue it: run, job and outbox in one transaction.

        Raises SpecError with the form's field name when the pieces do not fit together, and when `by` has
        not confirmed what this choice leaves out or reaches besides; OverBudget when the month has no room.
        """
        run = TrainingRun(
            project=project,
            created_by=by,
            name=name,
            dataset_version=dataset_version,
            base_model=base_model,
            target_module_config=target_module_config,
        )
        run.freeze(hyperparameters, confirmed=confirmed)
        run.forecast = forecast_run(run)
        require_4bit_worker(hyperparameters)
        with transaction.atomic():
            run.job = Job.objects.submit(
                Job.Kind.TRAIN, run.spec, project=project, by=by, idempotency_key=idempotency_key
            )
            run.save()
            require_budget(project, run.seconds_left, by)
        return run


class TrainingRun(models.Model):
    """One arm: base + dataset version + target modules + hyper-parameters.

    Shows its own outcome, else its job's state.
    """

    class Outcome(models.TextChoices):
        SUCCEEDED = "succeeded", _("Finished")
        FAILED = "failed", _("Failed")
        CANCELLED = "cancelled", _("Stopped")
        STOPPED_EARLY = "stopped_early", _("Stopped early, best kept")

    class Stop(models.TextChoices):
        """How somebody wants it to end alone, while others train on in its job; the engine's words."""

        NONE = "", _("Nobody asked")
        FINISH = "finish", _("The best so far as an adapter")
        CANCEL = "cancel", _("Nothing is kept")

    project = models.ForeignKey(Project, models.CASCADE, related_name="training_runs")
    name = models.CharField(_("name"), max_length=120)
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="training_runs")
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="training_runs")
    target_module_config = models.ForeignKey(TargetModuleConfig, models.PROTECT, related_name="training_runs")
    # The arm of a study that it belongs to; a rung where it only looks for that arm's learning rate.
    study_arm = models.ForeignKey(
        "dashboard.StudyArm", models.SET_NULL, null=True, blank=True, related_name="runs"
    )
    rung = models.PositiveSmallIntegerField(null=True, blank=True)
    spec = models.JSONField(default=dict)
    forecast = models.JSONField(default=dict)
    measured = models.JSONField(default=dict)
    # What was changed unasked: {"reason": code, "attempt": n, "changes": {name: [old, new]}} each.
    adjustments = models.JSONField(default=list)
    # Sentences on what the choice leaves out or reaches besides, and who has accepted them.
    confirmations = models.JSONField(default=list)
    confirmed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="training_runs")
    outcome = models.CharField(max_length=14, choices=Outcome.choices, blank=True)
    # Kept when it has ended: what was stopped alone is not continued with what was stopped later.
    stop_asked = models.CharField(max_length=6, choices=Stop.choices, blank=True)
    error_code = models.CharField(max_length=40, blank=True)
    error_message = models.TextField(blank=True)
    ended_step = models.PositiveIntegerField(null=True, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TrainingRunQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["project", "-id"]),
            # The forms ask at every change what is promised, and a project's ended runs are many.
            models.Index(fields=["project"], condition=models.Q(outcome=""), name="training_run_open"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(outcome__in=["", "succeeded", "failed", "cancelled", "stopped_early"]),
                name="training_run_outcome_known",
            ),
            models.CheckConstraint(
                condition=models.Q(stop_asked__in=["", "finish", "cancel"]), name="training_run_stop_known"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("training-run-detail", args=[self.pk])

    @staticmethod
    def default_name(version: DatasetVersion, config: TargetModuleConfig) -> str:
        """What a run is called when nobody named it."""
        return f"{version.dataset.name} {config.name}"[:120]

    def freeze(self, hyperparameters: Hyperparameters, *, confirmed: bool = False) -> None:
        """Check that the pieces fit, and build the spec from them.

        `confirmed`: whoever starts the run has accepted what the resolution wants accepted.
        """
        if not self.dataset_version.is_ready:
            raise SpecError("dataset", "This dataset is not imported yet.")
        if not self.base_model.is_ready:
            raise SpecError("base_model", "This base model has not been inspected yet.")
        census = self.base_model.load_census()
        if census.max_positions and hyperparameters.max_length > census.max_positions:
            raise SpecError(
                "max_length",
                f"`max_length` is {hyperparameters.max_length}. "
                f"{self.base_model} reads at most {census.max_positions} tokens.",
            )
        resolution = self.target_module_config.resolve(self.base_model)
        if resolution.refusal:
            raise SpecError("target_module_config", resolution.refusal)
        if resolution.confirmations and not confirmed:
            raise SpecError("confirmed", confirmation_request(resolution.confirmations))
        self.confirmations = list(resolution.confirmations)
        self.confirmed_by = self.created_by if resolution.confirmations else None
        spec = TrainSpec(
            name=self.name,
            base=self.base_model.spec(),
            data=self.dataset_version.spec(),
            target=target_spec(resolution, hyperparameters),
            hyperparameters=hyperparameters,
            preset=self.target_module_config.name,
        )
        self.spec = to_dict(spec)

    @property
    def state(self) -> str:
        """Draft without a job, else its own outcome, else the job's state."""
        return self.outcome or (self.job.state if self.job else "draft")

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return bool(self.outcome) or (self.job is not None and self.job.is_over)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The resolved settings, from the frozen spec."""
        return dict(self.spec.get("hyperparameters", {}))

    @property
    def in_4bit(self) -> bool:
        """Whether its base model was kept in 4 bits, so that its adapter knows it so."""
        return bool(self.hyperparameters.get("load_in_4bit"))

    @property
    def requires_dedicated_base(self) -> bool:
        """Whether its adapter stands alone on a loaded base, as `study_plan.trains_alone` says before."""
        on_experts = bool(self.spec.get("target", {}).get("target_parameters"))
        return on_experts or bool(self.hyperparameters.get("use_dora"))

    @property
    def seed(self) -> int:
        """What its order of rows and its adapter's first values are drawn with."""
        return int(self.hyperparameters.get("seed", 0))

    @property
    def effective_settings(self) -> dict[str, Any]:
        """The settings that its newest attempt used: what was chosen, and what was adjusted since."""
        changes = [change for one in self.adjustments for change in one["changes"].items()]
        return {**self.hyperparameters, **{name: values[1] for name, values in changes}}

    @property
    def origin(self) -> dict[str, Any]:
        """All that made it what it is, without folders of this installation; null for what is not known."""
        base, data = self.spec.get("base", {}), self.spec.get("data", {})
        return {
            "hyperparameters": self.effective_settings,
            "target_modules": self.spec.get("target", {}),
            "base_model": base.get("name"),
            "base_revision": base.get("revision"),
            "base_sha256": base.get("sha256") or None,
            "dataset_sha256": data.get("sha256"),
            "test_sha256": data.get("test_sha256") or None,
            "seed": self.seed,
            **{name: self.measured.get(name) for name in RECORDED},
        }

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        settings_ = Hyperparameters(**self.hyperparameters)
        return settings_.total_steps(self.dataset_version.splits.get("train", 0))

    @property
    def step(self) -> int:
        """Optimizer steps completed so far."""
        if self.ended_step is not None:
            return self.ended_step
        return self.job.step if self.job and self.job.phase == "training" else self.trained_step

    @property
    def trained_step(self) -> int:
        """The last step that a metric was stored for."""
        # Looked for here, so that a prefetched list is used; a run has about ten curves.
        losses = (one.last_step for one in self.metric_series.all() if one.name == "train/loss")
        return next(losses, 0)

    @property
    def seconds_left(self) -> float:
        """What is left of the time that was forecast for it."""
        expected = expected_seconds(self.forecast)
        return expected * max(0.0, 1 - self.trained_step / max(1, self.total_steps))

    @property
    def error(self) -> dict[str, str] | None:
        """Why it failed, or None."""
        if self.state != State.FAILED:
            return None
        if self.error_code:
            return {"code": self.error_code, "message": self.error_message}
        return self.job.error if self.job else None

    @property
    def resumable_from(self) -> int | None:
        """Completed steps from which it could be resumed; None when it cannot."""
        ended = self.outcome in (self.Outcome.CANCELLED, self.Outcome.FAILED)
        ended = ended and self.error_code != "diverged" and not self.was_stopped_alone
        # Asked of the disk, so only where the rows alone do not say no.
        may = ended and self.job is not None and self.job.is_over and self.job.keeps_checkpoint
        return self.job.checkpoint_step() if may and self.job else None

    @property
    def was_stopped_alone(self) -> bool:
        """Whether somebody ended it and kept nothing of it, while others trained on in its job."""
        return self.outcome == self.Outcome.CANCELLED and self.stop_asked == self.Stop.CANCEL

    def resume(self, by: User | None = None) -> None:
        """Continue it, and what was stopped with it, from the checkpoint.

        IllegalMove says why not; OverBudget, that the month has no room for what is left.
        """
        resume_run(self, by)

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will happen to it or to its evaluations."""
        return self.is_over and all(
            evaluation.job is None or evaluation.job.is_over for evaluation in self.evaluations.all()
        )

    def scores(self) -> dict[str, dict[str, Any]]:
        """The newest ended evaluation's metrics by subject, `base` and `adapter`."""
        return {
            evaluation.subject: evaluation.metrics
            for evaluation in sorted(self.evaluations.all(), key=lambda evaluation: evaluation.pk)
            if evaluation.state == State.SUCCEEDED
        }

    def flat_settings(self) -> dict[str, Any]:
        """What a person chose, flat, for tables that compare runs."""
        return {
            "dataset": str(self.dataset_version),
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
        """Write the outcome once; a second end of the same arm changes nothing."""
        self.measured = measured or {}
        # Told to keep its best before it had any, it leaves as little as one that was to keep nothing.
        alone = {"stop_asked": self.Stop.CANCEL} if outcome == self.Outcome.CANCELLED else {}
        changed = TrainingRun.objects.filter(pk=self.pk, outcome="").update(
            outcome=outcome,
            ended_step=step,
            error_code=code,
            error_message=message,
            measured=self.measured,
            **alone,
        )
        if changed:
            self.refresh_from_db()
        if changed and outcome == self.Outcome.SUCCEEDED:
            record_calibration(self)


def require_4bit_worker(hyperparameters: Hyperparameters) -> None:
    """Refuse a base model in 4 bits where no worker that is there can keep it so.

    Asked where new work comes in. What was let in waits for such a worker, should it be away for a while.
    """
    if hyperparameters.load_in_4bit and not WorkerNode.objects.supporting_4bit().exists():
        raise SpecError(
            "load_in_4bit", gettext("`load_in_4bit` cannot be on: %(why)s") % {"why": NO_4BIT_WORKER}
        )


def confirmation_request(sentences: Sequence[str]) -> str:
    """What has to be accepted first, and how."""
    return gettext("Read this, and confirm it with `confirmed`: true. %(sentences)s") % {
        "sentences": " ".join(sentences)
    }
