"""Studies: the same data and base, trained with several choices of target modules, compared in pairs.

A study has arms, an arm has one run per seed, and all arms of a seed train in one job on one loaded base.
`Study.advance` queues whatever the ended jobs allow; it may be called at any time by anybody.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models, transaction
from django.db.models.functions import Now
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.adapter import Adapter
from dashboard.models.base_model import BaseModel
from dashboard.models.compute_budget import require_room
from dashboard.models.dataset import DatasetVersion
from dashboard.models.evaluation import Evaluation
from dashboard.models.forecast import Reckoner, told_seconds
from dashboard.models.job import Job
from dashboard.models.job_state import LIVE, TERMINAL, State
from dashboard.models.project import Project, ProjectQuerySet
from dashboard.models.study_plan import (
    DEFAULT_MARGIN,
    DEFAULT_SEEDS,
    LOWER_IS_BETTER,
    METRICS,
    TEST_ROWS,
    ArmPlan,
    check_experts,
    check_plan,
    check_seeds,
    chosen_reference,
    default_metric,
    halvings,
    passes,
    with_equal_parameters,
    with_rate,
)
from dashboard.models.target_module_config import TargetModuleConfig
from dashboard.models.training_run import TrainingRun
from workers.errors import SpecError, TargetError
from workers.specs import Hyperparameters

if TYPE_CHECKING:
    from dashboard.models.user import User


class StudyQuerySet(ProjectQuerySet["Study"]):
    """Studies by what is left to do."""

    def with_facts(self) -> StudyQuerySet:
        """Everything that lists and pages name, in a fixed number of queries."""
        return self.select_related(
            "base_model", "dataset_version__dataset", "created_by", "project"
        ).prefetch_related(
            "arms__target_module_config",
            "arms__runs__job",
            "arms__runs__adapter",
            "arms__runs__evaluations__job",
        )

    def unfinished(self) -> StudyQuerySet:
        """Those that the dispatcher looks after."""
        return self.filter(finished_at=None)

    def of_job(self, job: Job) -> StudyQuerySet:
        """The study whose runs `job` trains or evaluates, if any."""
        trained = models.Q(arms__runs__job=job)
        return self.filter(trained | models.Q(arms__runs__evaluations__job=job)).distinct()

    def launched_with(self, project: Project, idempotency_key: str) -> Study | None:
        """The study that an earlier request with this key started, if any."""
        job = Job.objects.answered(project, idempotency_key)
        return self.of_job(job).first() if job else None

    def launch(
        self,
        *,
        project: Project,
        by: User | None,
        name: str,
        dataset_version: DatasetVersion,
        base_model: BaseModel,
        arms: Sequence[ArmPlan],
        seeds: Sequence[int] = DEFAULT_SEEDS,
        budget: str = "equal-rank",
        metric: str = "",
        reference: str = "",
        margin: float = DEFAULT_MARGIN,
        learning_rates: Sequence[float] = (),
        test_rows: int = TEST_ROWS,
        confirmed: bool = False,
        idempotency_key: str = "",
    ) -> Study:
        """Freeze the plan and queue its first job, in one transaction; SpecError names the field.

        OverBudget says that the month has no room for all of it.

        `confirmed`: `by` has accepted what the arms' choices leave out or reach besides.
        """
        check_plan(arms, seeds, learning_rates, margin, metric)
        check_experts(arms, base_model)
        study = Study(
            project=project,
            created_by=by,
            name=name,
            dataset_version=dataset_version,
            base_model=base_model,
            budget=budget,
            metric=metric or default_metric(dataset_version),
            reference=chosen_reference(arms, reference),
            margin=margin,
            seeds=list(seeds),
            learning_rates=sorted(learning_rates),
            test_rows=test_rows,
            confirmed_by=by if confirmed else None,
        )
        if len(learning_rates) == 1:
            arms, study.learning_rates = with_rate(arms, learning_rates[0]), []
        if budget == Study.Budget.EQUAL_PARAMETERS:
            arms = with_equal_parameters(arms, base_model)
        with transaction.atomic():
            study.save()
            for position, plan in enumerate(arms):
                study.arms.create(
                    position=position,
                    name=plan.name,
                    target_module_config=plan.config,
                    hyperparameters=dataclasses.asdict(plan.hyperparameters),
                )
            study._queue_next(idempotency_key)
            study.forecast_seconds = study._whole_forecast(arms)
            study.save(update_fields=["forecast_seconds"])
            require_room(project, study.forecast_seconds, by)
        return study


class Study(models.Model):
    """A comparison that was fixed before it began: arms, seeds, budget, metric, reference and margin."""

    class Budget(models.TextChoices):
        EQUAL_RANK = "equal-rank", gettext_lazy("Equal rank: what you would do in practice")
        EQUAL_PARAMETERS = "equal-parameters", gettext_lazy("Equal parameters: a fair test of the modules")

    project = models.ForeignKey(Project, models.CASCADE, related_name="studies")
    name = models.CharField(gettext_lazy("name"), max_length=120)
    dataset_version = models.ForeignKey(DatasetVersion, models.PROTECT, related_name="studies")
    base_model = models.ForeignKey(BaseModel, models.PROTECT, related_name="studies")
    budget = models.CharField(max_length=20, choices=Budget.choices, default=Budget.EQUAL_RANK)
    metric = models.CharField(max_length=20)
    reference = models.CharField(max_length=120)
    margin = models.FloatField()
    seeds = models.JSONField()
    learning_rates = models.JSONField(default=list)
    test_rows = models.PositiveIntegerField(default=TEST_ROWS)
    # Who has accepted what the arms' choices leave out or reach besides; each run keeps the sentences.
    confirmed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    # Of all its training: runs that are not queued yet have no forecast of their own.
    forecast_seconds = models.FloatField(default=0)
    # Numbers of the verdict, written when everything has ended; `dashboard.models.study_result` says which.
    result = models.JSONField(default=dict)
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
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("study-detail", args=[self.pk])

    def runs(self) -> models.QuerySet[TrainingRun]:
        """Every run of it, those that only look for a learning rate included."""
        return TrainingRun.objects.filter(study_arm__study=self)

    def jobs(self) -> models.QuerySet[Job]:
        """Every job of it: trainings and evaluations."""
        runs = self.runs()
        return Job.objects.filter(
            models.Q(training_runs__in=runs) | models.Q(evaluations__run__in=runs)
        ).distinct()

    @property
    def state(self) -> str:
        """queued, running, cancelling, succeeded, failed or cancelled: derived from its jobs."""
        if self.finished_at:
            if self.cancelled_at and not self.result.get("comparisons"):
                return State.FAILED if self.stop_reason else State.CANCELLED
            return State.SUCCEEDED if self.result.get("arms") else State.FAILED
        jobs = self.jobs()
        if self.cancelled_at or jobs.filter(state=State.CANCELLING).exists():
            return State.CANCELLING
        started = jobs.filter(models.Q(state__in=[*LIVE, *TERMINAL]) | models.Q(attempt__gt=0)).exists()
        return State.RUNNING if started else State.QUEUED

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.finished_at is not None

    @property
    def error(self) -> dict[str, str] | None:
        """Why not one arm came through, or None."""
        if self.state != State.FAILED:
            return None
        if self.stop_reason:
            return {"code": "plan_outdated", "message": self.stop_reason}
        first = next((arm.error for arm in self.arms.all() if arm.error), None)
        return first or {"code": "no_result", "message": _("No arm of this study came to a result.")}

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is a loss."""
        return self.metric in LOWER_IS_BETTER

    def metric_label(self) -> str:
        """The metric in words."""
        return str(METRICS.get(self.metric, self.metric))

    @property
    def seconds_to_come(self) -> float:
        """What the forecast holds for runs that are not queued yet."""
        queued = sum(told_seconds(forecast) for forecast in self.runs().values_list("forecast", flat=True))
        return max(0.0, self.forecast_seconds - queued)

    def _whole_forecast(self, arms: Sequence[ArmPlan]) -> float:
        """Seconds that all its training takes."""
        reckoner = Reckoner.of(self.base_model, self.dataset_version)
        found = [reckoner.forecast(arm.config.resolve(self.base_model), arm.hyperparameters) for arm in arms]
        times = passes(len(self.seeds), len(self.learning_rates))
        return times * sum(forecast.main.seconds["expected"] for forecast in found)

    # What happens next

    def advance(self) -> None:
        """Queue whatever the jobs that have ended allow; conclude when nothing is left. Idempotent."""
        try:
            with transaction.atomic():
                # One at a time: two callers would queue the same seed twice.
                Study.objects.select_for_update().get(pk=self.pk)
                self.refresh_from_db(fields=["cancelled_at", "finished_at", "seeds", "result"])
                if not self.cancelled_at:
                    self._queue_next()
        except (SpecError, TargetError) as changed:
            # The base model or a config has changed since the launch: what is done is judged, no more.
            self.request_cancel(reason=changed.message)
        if self.finished_at is None and not self._works():
            self._conclude()

    def _works(self) -> bool:
        return self.jobs().exclude(state__in=TERMINAL).exists()

    def _queue_next(self, idempotency_key: str = "") -> None:
        if self._searches(idempotency_key):
            return
        arms = [arm for arm in self.arms.all() if not arm.is_lost]
        for seed in self.seeds:
            runs = [run for arm in arms for run in arm.final_runs() if run.seed == seed]
            if not runs and arms:
                self._submit_training(
                    [(arm, arm.settings(seed=seed), None) for arm in arms],
                    idempotency_key=idempotency_key if seed == self.seeds[0] else "",
                )
            elif all(run.is_over for run in runs):
                self._submit_evaluation(runs)

    def _submit_training(
        self, cells: Sequence[tuple[StudyArm, Hyperparameters, int | None]], *, idempotency_key: str = ""
    ) -> None:
        """One job for all of `cells`: (arm, settings, rung of the search or None)."""
        runs = []
        for arm, learn, rung in cells:
            run = TrainingRun(
                project=self.project,
                created_by=self.created_by,
                name=arm.run_name(learn, rung),
                dataset_version=self.dataset_version,
                base_model=self.base_model,
                target_module_config=arm.target_module_config,
                study_arm=arm,
                rung=rung,
            )
            run.freeze(learn, confirmed=self.confirmed_by_id is not None)
            runs.append(run)
        job = Job.objects.submit(
            Job.Kind.TRAIN,
            {"specs": [run.spec for run in runs]},
            project=self.project,
            by=self.created_by,
            idempotency_key=idempotency_key,
        )
        for run in runs:
            run.job = job
            run.save()

    def _submit_evaluation(self, runs: Sequence[TrainingRun]) -> None:
        """Score the adapters of a seed on the same rows; the base once in the whole study."""
        adapters = list(Adapter.objects.filter(run__in=runs, evaluations=None).select_related("run"))
        if adapters:
            Evaluation.objects.submit_for_study(
                adapters,
                by=self.created_by,
                max_rows=self.test_rows,
                with_base=not Evaluation.objects.of_base(self).exists(),
            )

    def _searches(self, idempotency_key: str) -> bool:
        """Whether the learning rates are still being looked for; queues the next rung when one has ended."""
        if not self.learning_rates:
            return False
        arms = [arm for arm in self.arms.all() if arm.learning_rate is None and not arm.is_lost]
        if not arms:
            return False
        rungs = halvings(len(self.learning_rates))
        runs = [run for arm in arms for run in arm.search_runs()]
        if any(not run.is_over for run in runs):
            return True
        cells: list[tuple[StudyArm, Hyperparameters, int | None]] = []
        rung = max((run.rung or 0 for run in runs), default=-1) + 1
        for arm in arms:
            if rung == rungs:
                arm.choose_rate()
                continue
            kept = arm.best_rates(rung - 1, self.learning_rates, rung)
            whole = Hyperparameters(**arm.hyperparameters)
            steps = max(1, whole.total_steps(self.train_rows) // 2 ** (rungs - rung))
            for rate in kept:
                learn = dataclasses.replace(
                    arm.settings(seed=self.seeds[0]),
                    learning_rate=rate,
                    max_steps=steps,
                    num_train_epochs=None,
                )
                cells.append((arm, learn, rung))
        if cells:
            self._submit_training(cells, idempotency_key=idempotency_key if rung == 0 else "")
            return True
        return False

    def _conclude(self) -> None:
        """Write the numbers of the verdict and the end."""
        from dashboard.models.study_result import result_of

        # Outside of the lock: the draws take a second, and a second caller would find the same.
        found = result_of(self)
        with transaction.atomic():
            Study.objects.select_for_update().get(pk=self.pk)
            if not self._works():
                Study.objects.filter(pk=self.pk, finished_at=None).update(result=found, finished_at=Now())
        self.refresh_from_db(fields=["result", "finished_at"])

    @property
    def train_rows(self) -> int:
        """Rows that each run learns from."""
        return int(self.dataset_version.splits.get("train", 0))

    def request_cancel(self, by: User | None = None, *, reason: str = "") -> bool:
        """Stop every job of it; runs that have finished keep their adapters. False if it had ended."""
        if self.finished_at:
            return False
        Study.objects.filter(pk=self.pk, cancelled_at=None).update(cancelled_at=Now(), stop_reason=reason)
        self.refresh_from_db(fields=["cancelled_at", "stop_reason"])
        for job in self.jobs().exclude(state__in=TERMINAL):
            job.request_cancel(by)
        self.advance()
        return True

    def add_seeds(self, seeds: Sequence[int], by: User | None = None) -> None:
        """Train every arm with more seeds and judge anew; what is done is used again.

        Raises OverBudget where the month has no room for them.
        """
        fresh = [seed for seed in seeds if seed not in self.seeds]
        if not fresh:
            raise SpecError("seeds", _("Name seeds that the study does not have yet."))
        check_seeds([*self.seeds, *fresh])
        with transaction.atomic():
            locked = Study.objects.select_for_update().get(pk=self.pk)
            self.seeds = [*locked.seeds, *fresh]
            self.finished_at, self.cancelled_at, self.stop_reason = None, None, ""
            runs = [run for arm in self.arms.all() for run in arm.final_runs()[:1]]
            more = len(fresh) * sum(told_seconds(run.forecast) for run in runs)
            self.forecast_seconds = locked.forecast_seconds + more
            self.save(
                update_fields=["seeds", "finished_at", "cancelled_at", "stop_reason", "forecast_seconds"]
            )
            self._queue_next()
            require_room(self.project, more, by)


class StudyArm(models.Model):
    """One choice that is compared: target modules, and settings of its own."""

    study = models.ForeignKey(Study, models.CASCADE, related_name="arms")
    position = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=120)
    target_module_config = models.ForeignKey(TargetModuleConfig, models.PROTECT, related_name="study_arms")
    hyperparameters = models.JSONField()
    # Chosen on validation, when the study looks for one.
    learning_rate = models.FloatField(null=True, blank=True)

    class Meta:
        ordering = ["study", "position"]
        constraints = [models.UniqueConstraint(fields=["study", "name"], name="study_arm_name_once")]

    def __str__(self) -> str:
        return self.name

    def settings(self, *, seed: int) -> Hyperparameters:
        """What its run with this seed learns with."""
        learn = dataclasses.replace(Hyperparameters(**self.hyperparameters), seed=seed)
        return dataclasses.replace(learn, learning_rate=self.learning_rate or learn.learning_rate)

    def run_name(self, learn: Hyperparameters, rung: int | None) -> str:
        """What a run of it is called."""
        what = _("seed %(seed)d") if rung is None else _("rate %(rate)g")
        tail = what % {"seed": learn.seed, "rate": learn.learning_rate}
        return f"{self.study.name[:50]} · {self.name[:40]} · {tail}"

    def final_runs(self) -> list[TrainingRun]:
        """One per seed, oldest first."""
        return sorted((run for run in self.runs.all() if run.rung is None), key=lambda run: run.pk)

    def search_runs(self) -> list[TrainingRun]:
        """Short runs that only look for a learning rate."""
        return sorted((run for run in self.runs.all() if run.rung is not None), key=lambda run: run.pk)

    def best_rates(self, rung: int, rates: Sequence[float], next_rung: int) -> list[float]:
        """The better half of a rung's rates, by held-out loss; all of `rates` before the first rung."""
        if next_rung == 0:
            return list(rates)
        losses = self._losses(rung)
        ranked = sorted(losses, key=lambda rate: losses[rate])
        return sorted(ranked[: math.ceil(len(self._rung(rung)) / 2)])

    def choose_rate(self) -> None:
        """Keep the rate with the lowest held-out loss of the last rung."""
        last = max(run.rung or 0 for run in self.search_runs())
        losses = self._losses(last)
        self.learning_rate = min(losses, key=lambda rate: losses[rate], default=None)
        self.save(update_fields=["learning_rate"])

    @property
    def is_bracketed(self) -> bool:
        """Whether the chosen rate lies inside of the grid; at its edge a better one may lie outside."""
        rates = self.study.learning_rates
        return len(rates) < 3 or self.learning_rate is None or rates[0] < self.learning_rate < rates[-1]

    def _rung(self, rung: int) -> list[TrainingRun]:
        return [run for run in self.search_runs() if run.rung == rung]

    def _losses(self, rung: int) -> dict[float, float]:
        """Learning rate -> held-out loss of the runs of a rung that came through."""
        found: dict[float, float] = {}
        for run in self._rung(rung):
            loss = run.measured.get("validation_loss") or run.measured.get("train_loss")
            if run.outcome == TrainingRun.Outcome.SUCCEEDED and loss is not None:
                found[float(run.hyperparameters["learning_rate"])] = float(loss)
        return found

    @property
    def is_lost(self) -> bool:
        """Whether its search has ended without one run that came through."""
        runs = self.search_runs()
        return bool(runs) and all(run.is_over for run in runs) and not self._losses(0)

    @property
    def error(self) -> dict[str, str] | None:
        """Why it has no result: every one of its runs has failed. None otherwise."""
        runs = self.final_runs() or self.search_runs()
        errors = [run.error for run in runs]
        return errors[0] if errors and all(errors) else None
