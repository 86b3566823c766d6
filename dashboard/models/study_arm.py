"""The arms of a study: each has one run per seed, and perhaps short runs that look for its learning rate."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

from django.db import models
from django.utils.translation import gettext as _

from dashboard.models.study_plan import ArmPlan, halvings, varied
from dashboard.models.target_module_config import TargetModuleConfig
from dashboard.models.training_run import TrainingRun
from workers.specs import LIMITS, Hyperparameters

HAS_ADAPTER = (TrainingRun.Outcome.SUCCEEDED, TrainingRun.Outcome.STOPPED_EARLY)


def rate_of(run: TrainingRun) -> float:
    """The learning rate that it was started with."""
    return float(run.hyperparameters["learning_rate"])


class StudyArm(models.Model):
    """One choice that is compared: target modules, and settings of its own."""

    study = models.ForeignKey("dashboard.Study", models.CASCADE, related_name="arms")
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

    @property
    def plan(self) -> ArmPlan:
        """What it was planned as."""
        return ArmPlan(self.name, self.target_module_config, Hyperparameters(**self.hyperparameters))

    def varied(self, changes: dict[str, Any]) -> Hyperparameters:
        """Its settings with some changed; alpha stays twice the rank where it is. May raise SpecError."""
        return varied(Hyperparameters(**self.hyperparameters), changes)

    def settings(self, *, seed: int) -> Hyperparameters:
        """What its run with this seed learns with."""
        learn = dataclasses.replace(Hyperparameters(**self.hyperparameters), seed=seed)
        return dataclasses.replace(learn, learning_rate=self.learning_rate or learn.learning_rate)

    def run_name(self, learn: Hyperparameters, rung: int | None) -> str:
        """What a run of it is called."""
        what = _("seed %(seed)d") if rung is None else _("rate %(rate)g")
        tail = what % {"seed": learn.seed, "rate": learn.learning_rate}
        if rung is None and any(run.rung is None and run.seed == learn.seed for run in self.runs.all()):
            # A rate that was tried later has replaced that of the seed's first run.
            tail = f"{tail} · {_('rate %(rate)g') % {'rate': learn.learning_rate}}"
        return f"{self.study.name[:50]} · {self.name[:40]} · {tail}"

    def final_runs(self) -> list[TrainingRun]:
        """One per seed, oldest first; those with a rate that a better one has replaced do not count."""
        found = [run for run in self.runs.all() if run.rung is None and self._has_rate(run)]
        return sorted(found, key=lambda run: run.pk)

    def _has_rate(self, run: TrainingRun) -> bool:
        return self.learning_rate in (None, rate_of(run))

    def search_runs(self) -> list[TrainingRun]:
        """Short runs that only look for a learning rate."""
        return sorted((run for run in self.runs.all() if run.rung is not None), key=lambda run: run.pk)

    # The search for a learning rate

    def next_trials(self) -> tuple[int, list[Hyperparameters]]:
        """The next rung of the search and what its short runs learn with; nothing when rates are used up."""
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
        """Keep the rate with the lowest held-out loss; the same runs always lead to the same one."""
        rate = self._rate_found()
        whole = [run for run in self.runs.all() if run.rung is None]
        seeds = [run for run in whole if rate_of(run) == rate]
        done = Counter(rate_of(run) for run in whole if run.outcome in HAS_ADAPTER)
        if done and seeds and all(run.is_over for run in seeds):
            # Where seeds with a rate that was tried later failed or were stopped, those before still count.
            fullest, most = done.most_common(1)[0]
            rate = fullest if sum(run.outcome in HAS_ADAPTER for run in seeds) < most else rate
        if rate != self.learning_rate:
            self.learning_rate = rate
            self.save(update_fields=["learning_rate"])

    def _rate_found(self) -> float | None:
        losses = self._losses(self._deciding_rung())
        return min(losses, key=lambda rate: losses[rate], default=None)

    def _deciding_rung(self) -> int:
        """The last rung that came to a loss."""
        return next((rung for rung in range(self._last_rung(), -1, -1) if self._losses(rung)), 0)

    # One more rate, beyond the edge

    @property
    def rates_tried(self) -> list[float]:
        """The study's, and those that were tried later and told something."""
        later = (run for run in self.search_runs() if run.outcome == TrainingRun.Outcome.SUCCEEDED)
        lost = (run for run in self.search_runs() if run.error_code == "diverged")
        return sorted({*self.study.learning_rates, *map(rate_of, (*later, *lost))})

    @property
    def is_bracketed(self) -> bool:
        """Whether the chosen rate lies inside of what was tried; at the edge a better one may lie beyond."""
        tried = self.rates_tried
        if self.learning_rate is None or not tried:
            return True
        return tried[0] < self.learning_rate < tried[-1] and self.learning_rate == self._rate_found()

    @property
    def is_searching(self) -> bool:
        """Whether one of its short runs has not ended."""
        return any(not run.is_over for run in self.search_runs())

    @property
    def rate_being_tried(self) -> float | None:
        """A rate beyond the edge whose short run has not ended."""
        at_work = (run for run in self.search_runs() if not run.is_over)
        return next(map(rate_of, at_work), None) if self.learning_rate is not None else None

    @property
    def next_rate(self) -> float | None:
        """The rate beyond the edge, as far from it as its neighbour; None where there is nothing to try."""
        return None if self.no_next_rate else self._beyond()

    @property
    def no_next_rate(self) -> str:
        """Why there is no further rate to try; "" where there is one."""
        words = {"arm": self.name, "rate": f"{self.learning_rate or 0:g}"}
        if not self.study.learning_rates:
            return _("This study looks for no learning rates, so `%(arm)s` has none at an edge.") % words
        if self.learning_rate is None or self.rate_being_tried is not None:
            return _("Learning rates of `%(arm)s` are still being tried. Wait for their end.") % words
        if self.is_bracketed:
            return (
                _(
                    "The learning rate of `%(arm)s`, %(rate)s, lies inside of what was tried. "
                    "Only one at the edge can be gone beyond."
                )
                % words
            )
        if self.learning_rate != self._rate_found():
            return _("The seeds of `%(arm)s` with a rate beyond %(rate)s have not come through.") % words
        if self._beyond() is None:
            return _("No learning rate beyond %(rate)s, that of `%(arm)s`, can be tried.") % words
        return ""

    def _beyond(self) -> float | None:
        tried = self.rates_tried
        if len(tried) < 2:
            return None
        edge, inner = tried[:2] if self.learning_rate == tried[0] else tried[:-3:-1]
        low, high = LIMITS["learning_rate"]
        rate = min(max(float(f"{edge * edge / inner:.3g}"), low), high)
        return None if rate in tried else rate

    def trial(self, rate: float) -> tuple[int, Hyperparameters]:
        """The rung and settings of one more short run: as long as those that have decided."""
        rung = self._deciding_rung()
        like = Hyperparameters(**self._rung(rung)[0].hyperparameters)
        return rung, dataclasses.replace(like, learning_rate=rate)

    def _last_rung(self) -> int:
        return max((run.rung or 0 for run in self.search_runs()), default=-1)

    def _rung(self, rung: int) -> list[TrainingRun]:
        return [run for run in self.search_runs() if run.rung == rung]

    def _better_half(self, rung: int) -> list[float]:
        losses = self._losses(rung)
        ranked = sorted(losses, key=lambda rate: losses[rate])
        return sorted(ranked[: math.ceil(len(self._rung(rung)) / 2)])

    def _losses(self, rung: int) -> dict[float, float]:
        """Learning rate -> held-out loss of the runs of a rung that came through."""
        found: dict[float, float] = {}
        for run in self._rung(rung):
            loss = run.measured.get("validation_loss") or run.measured.get("train_loss")
            if run.outcome == TrainingRun.Outcome.SUCCEEDED and loss is not None:
                found[rate_of(run)] = float(loss)
        return found

    # How it ended

    @property
    def is_measured_alone(self) -> bool | None:
        """Whether no other run shared a job with one of its runs; None before the first."""
        taken = Counter(run.job_id for arm in self.study.arms.all() for run in arm.runs.all())
        runs = self.final_runs()
        return all(taken[run.job_id] == 1 for run in runs) if runs else None

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
