"""Forgetting: changes outside of the trained data, against the base model.

Measured as the loss on a fixed text and the accuracy on general questions. A value that an evaluation has not
measured is None.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from dashboard.models.evaluations.evaluation import Evaluation, adapter_evaluation, base_evaluation
from dashboard.models.jobs.job_state import State
from workers.statistics import verdicts

if TYPE_CHECKING:
    from dashboard.models.studies.results.comparison import UnsavedStudy
    from dashboard.models.studies.study import Study
    from dashboard.models.training.training_run import TrainingRun


@dataclass(frozen=True)
class Forgetting:
    """The evaluations of the base model and of the adapters of one arm, one for each seed."""

    base: Evaluation | None
    adapters: Sequence[Evaluation]

    @property
    def base_loss(self) -> float | None:
        """Return the base model's mean loss per token of the fixed text."""
        return _general_loss(self.base)

    @property
    def losses(self) -> list[float]:
        return [loss for adapter in self.adapters if (loss := _general_loss(adapter)) is not None]

    @property
    def loss(self) -> float | None:
        return fmean(self.losses) if self.losses else None

    @property
    def rises(self) -> list[float]:
        """Return each seed's loss minus the base model's."""
        base = self.base_loss
        return [] if base is None else [loss - base for loss in self.losses]

    @property
    def rise(self) -> float | None:
        return fmean(self.rises) if self.rises else None

    @property
    def base_accuracy(self) -> float | None:
        """Return the base model's share of right general questions."""
        marks = _marks(self.base)
        return fmean(marks) if marks else None

    @property
    def accuracy(self) -> float | None:
        """Return the adapters' share of right general questions, as the mean over seeds."""
        shares = [fmean(marks) for adapter in self.adapters if (marks := _marks(adapter))]
        return fmean(shares) if shares else None

    @property
    def questions(self) -> int:
        """Return the number of general questions; 0 if none was asked."""
        return max(len(_marks(evaluation)) for evaluation in (self.base, *self.adapters))

    def change(self) -> dict[str, float] | None:
        """Return adapters minus base model on the same questions: mean, and paired 95 % interval."""
        base = _marks(self.base)
        digest = self.base.general_questions.get("sha256") if self.base else None
        paired = [
            tuple(_marks(adapter))
            for adapter in self.adapters
            if base and digest and adapter.general_questions.get("sha256") == digest
        ]
        return dict(_paired_change(tuple(base), tuple(paired))) if paired else None

    @property
    def is_base_guessing(self) -> bool:
        """Return whether the base model is no better than chance, so that no fall can be measured."""
        marks = _marks(self.base)
        if self.base is None or not marks:
            return False
        return not verdicts.beats_chance(sum(marks), len(marks), self.base.general_questions["choices"])

    def facts(self) -> dict[str, Any]:
        return {
            "general_loss": self.loss,
            "general_loss_rise": self.rise,
            "general_accuracy": self.accuracy,
            "general_accuracy_change": self.change(),
            "base_general_loss": self.base_loss,
            "base_general_accuracy": self.base_accuracy,
        }


# Lists repeat the same computation, and the answers of an ended evaluation never change.
@functools.lru_cache(maxsize=1024)
def _paired_change(base: tuple[int, ...], adapters: tuple[tuple[int, ...], ...]) -> dict[str, float]:
    estimate = verdicts.estimate_items(
        np.array(adapters, dtype=np.float64) - np.array(base, dtype=np.float64)
    )
    return {"mean": estimate.mean, "low": max(-1.0, estimate.low), "high": min(1.0, estimate.high)}


def _marks(evaluation: Evaluation | None) -> list[int]:
    """Return 1 for each general question that was answered right, else 0."""
    return list(evaluation.general_questions.get("marks", ())) if evaluation else []


def _general_loss(evaluation: Evaluation | None) -> float | None:
    loss = evaluation.metrics.get("general_loss") if evaluation else None
    return None if loss is None else float(loss)


def run_forgetting(run: TrainingRun) -> Forgetting:
    return Forgetting(base_evaluation(run), _ended(run))


def study_forgetting(study: Study) -> dict[str, Forgetting]:
    """Return the forgetting of every arm by name; makes no query if the study was fetched with facts."""
    arms = list(study.arms.all())
    bases = [base for arm in arms for run in arm.final_runs() if (base := base_evaluation(run))]
    base = max(bases, key=lambda one: one.pk, default=None)
    return {
        arm.name: Forgetting(base, [one for run in arm.final_runs() for one in _ended(run)]) for arm in arms
    }


def chosen_runs_forgetting(study: UnsavedStudy) -> dict[str, Forgetting]:
    """Return the forgetting of every arm against its own base evaluation, else that of the same model."""
    forgetting = {}
    for arm in study.scored:
        base = base_evaluation(arm.first) or study.base_evaluations.get(str(arm.first.base_model))
        forgetting[arm.name] = Forgetting(base, list(arm.evaluations().values()))
    return forgetting


def _ended(run: TrainingRun) -> list[Evaluation]:
    """Return the newest evaluation of the run's adapter with results in a list, or an empty list."""
    evaluation = adapter_evaluation(run)
    return [evaluation] if evaluation and evaluation.state == State.SUCCEEDED else []
