"""The arms of a study: one run per seed, and short runs of the search for a learning rate."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

from django.db import models
from django.utils.translation import gettext as _

from dashboard.models.catalog.target_module_config import TargetModuleConfig
from dashboard.models.studies.plan import ArmPlan, halvings
from dashboard.models.training.training_run import TrainingRun
from workers.contract.hyperparameters import Hyperparameters


def rate_of(run: TrainingRun) -> float:
    """Return the learning rate that a run was started with."""
    return float(run.hyperparameters["learning_rate"])


class StudyArm(models.Model):
    """A choice of target modules with its own settings."""

    study = models.ForeignKey("dashboard.Study", models.CASCADE, related_name="arms")
    position = models.PositiveSmallIntegerField()
    name = models.CharField(max_length=120)
    is_reference = models.BooleanField(default=False)
    target_module_config = models.ForeignKey(TargetModuleConfig, models.PROTECT, related_name="study_arms")
    hyperparameters = models.JSONField()
    # Chosen on validation, when the study looks for one.
    learning_rate = models.FloatField(null=True, blank=True)
    # A `Verdict`, once a look has decided the arm, so that it gets no further seeds; {} until then.
    verdict = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["study", "position"]
        constraints = [
            models.UniqueConstraint(fields=["study", "name"], name="study_arm_name_once"),
            models.UniqueConstraint(
                fields=["study"], condition=models.Q(is_reference=True), name="study_one_reference_arm"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def target_module_label(self) -> str:
        """Return the choice of target modules, unless it is the arm's name."""
        label = str(self.target_module_config.name)
        return "" if label.lower() == self.name.lower() else label

    @property
    def plan(self) -> ArmPlan:
        """Return the plan that it was created from."""
        return ArmPlan(self.name, self.target_module_config, Hyperparameters(**self.hyperparameters))

    def settings(self, *, seed: int) -> Hyperparameters:
        learn = dataclasses.replace(Hyperparameters(**self.hyperparameters), seed=seed)
        return dataclasses.replace(learn, learning_rate=self.learning_rate or learn.learning_rate)

    def run_name(self, learn: Hyperparameters, rung: int | None) -> str:
        what = _("seed %(seed)d") if rung is None else _("rate %(rate)g")
        tail = what % {"seed": learn.seed, "rate": learn.learning_rate}
        return f"{self.study.name[:50]} · {self.name[:40]} · {tail}"

    def final_runs(self) -> list[TrainingRun]:
        """Return one run per seed, oldest first."""
        return sorted((run for run in self.runs.all() if run.rung is None), key=lambda run: run.pk)

    def search_runs(self) -> list[TrainingRun]:
        """Return the short runs of the search for a learning rate."""
        return sorted((run for run in self.runs.all() if run.rung is not None), key=lambda run: run.pk)

    # The search for a learning rate

    def next_trials(self) -> tuple[int, list[Hyperparameters]]:
        """Return the next rung of the search and the settings of its short runs; none after the last."""
        rates = self.study.learning_rates
        rungs, rung = halvings(len(rates)), self._last_rung() + 1
        if rung >= rungs:
            return rung, []
        learn = self.settings(seed=self.study.seeds[0])
        steps = max(1, learn.total_steps(self.study.train_rows) // 2 ** (rungs - rung))
        short = dataclasses.replace(learn, max_steps=steps, num_train_epochs=None)
        kept = self._better_half(rung - 1) if rung else rates
        return rung, [dataclasses.replace(short, learning_rate=rate) for rate in kept]

    def choose_rate(self) -> None:
        """Keep the rate with the lowest validation loss; once chosen, it stays."""
        if self.learning_rate is None and (losses := self._losses(self._deciding_rung())):
            self.learning_rate = min(losses, key=lambda rate: losses[rate])
            self.save(update_fields=["learning_rate"])

    def _deciding_rung(self) -> int:
        """Return the last rung that has a loss."""
        return next((rung for rung in range(self._last_rung(), -1, -1) if self._losses(rung)), 0)

    @property
    def is_bracketed(self) -> bool:
        """Return whether lower and higher rates than the chosen one were tried."""
        tried = self.study.learning_rates
        return self.learning_rate is None or not tried or tried[0] < self.learning_rate < tried[-1]

    def _last_rung(self) -> int:
        return max((run.rung or 0 for run in self.search_runs()), default=-1)

    def _rung(self, rung: int) -> list[TrainingRun]:
        return [run for run in self.search_runs() if run.rung == rung]

    def _better_half(self, rung: int) -> list[float]:
        losses = self._losses(rung)
        ranked = sorted(losses, key=lambda rate: losses[rate])
        return sorted(ranked[: math.ceil(len(self._rung(rung)) / 2)])

    def _losses(self, rung: int) -> dict[float, float]:
        """Return learning rate -> validation loss of the finished runs of a rung."""
        losses: dict[float, float] = {}
        for run in self._rung(rung):
            loss = run.measured.get("validation_loss") or run.measured.get("train_loss")
            if run.outcome == TrainingRun.Outcome.SUCCEEDED and loss is not None:
                losses[rate_of(run)] = float(loss)
        return losses

    # How it ended

    @property
    def is_measured_alone(self) -> bool | None:
        """Return whether each run trained for it had a job of its own; None before the first."""
        taken = Counter(run.job_id for arm in self.study.arms_with_runs() for run in arm.runs.all())
        runs = [run for run in self.final_runs() if run.reused_from_id is None]
        return all(taken[run.job_id] == 1 for run in runs) if runs else None

    @property
    def is_lost(self) -> bool:
        """Return whether its search has ended without a finished run."""
        runs = self.search_runs()
        return bool(runs) and all(run.is_over for run in runs) and not self._losses(0)

    @property
    def error(self) -> dict[str, str] | None:
        """Return the first error if all of its runs have failed, else None."""
        runs = self.final_runs() or self.search_runs()
        errors = [run.error for run in runs]
        return errors[0] if errors and all(errors) else None
