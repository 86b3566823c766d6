"""What adapters change outside of their own data: the loss on a fixed text, and general questions.

Always against the base model. What an earlier evaluation did not measure is None, never guessed.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dashboard.models.evaluation import Evaluation
from dashboard.models.job_state import State
from workers import verdicts

if TYPE_CHECKING:
    from dashboard.models.comparison import Comparison
    from dashboard.models.study import Study
    from dashboard.models.training_run import TrainingRun


@dataclass(frozen=True)
class Forgetting:
    """The base model and the adapters of one arm, one for each seed."""

    base: Evaluation | None
    tuned: Sequence[Evaluation]

    @property
    def base_loss(self) -> float | None:
        """The base model's mean loss per token of the fixed text."""
        return _loss(self.base)

    @property
    def losses(self) -> list[float]:
        """The same of each seed."""
        return [loss for one in self.tuned if (loss := _loss(one)) is not None]

    @property
    def loss(self) -> float | None:
        """Their mean."""
        return statistics.fmean(self.losses) if self.losses else None

    @property
    def rises(self) -> list[float]:
        """How far each seed's loss lies above the base model's."""
        base = self.base_loss
        return [] if base is None else [loss - base for loss in self.losses]

    @property
    def rise(self) -> float | None:
        """Their mean."""
        return statistics.fmean(self.rises) if self.rises else None

    @property
    def base_accuracy(self) -> float | None:
        """Share of the general questions that the base model answers right."""
        marks = marks_of(self.base)
        return statistics.fmean(marks) if marks else None

    @property
    def accuracy(self) -> float | None:
        """The same of the adapters, as the mean over seeds."""
        asked = [marks for one in self.tuned if (marks := marks_of(one))]
        return statistics.fmean(map(statistics.fmean, asked)) if asked else None

    @property
    def questions(self) -> int:
        """How many questions there are; 0 if none was asked."""
        return max((len(marks_of(one)) for one in (self.base, *self.tuned)), default=0)

    def change(self) -> dict[str, float] | None:
        """Share right, adapters minus base model on the same questions, with its paired 95 % interval."""
        base = marks_of(self.base)
        paired = [marks_of(one) for one in self.tuned if base and _asked_alike(one, self.base)]
        return dict(_change(tuple(base), tuple(map(tuple, paired)))) if paired else None

    @property
    def base_guesses(self) -> bool:
        """Whether the base model answers no better than by chance, so that no fall could be seen."""
        marks = marks_of(self.base)
        if self.base is None or not marks:
            return False
        return not verdicts.beats_chance(sum(marks), len(marks), self.base.general_questions["choices"])

    def facts(self) -> dict[str, Any]:
        """The arm's numbers as plain values; null where something was not measured."""
        return {
            "general_loss": self.loss,
            "general_loss_rise": self.rise,
            "general_accuracy": self.accuracy,
            "general_accuracy_change": self.change(),
            "base_general_loss": self.base_loss,
            "base_general_accuracy": self.base_accuracy,
        }


# Lists ask for the same again and again, and answers of an evaluation that has ended never change.
@functools.lru_cache(maxsize=1024)
def _change(base: tuple[int, ...], tuned: tuple[tuple[int, ...], ...]) -> dict[str, float]:
    found = verdicts.estimate(np.array(tuned, dtype=np.float64) - np.array(base, dtype=np.float64))
    return {"mean": found.mean, "low": max(-1.0, found.low), "high": min(1.0, found.high)}


def marks_of(evaluation: Evaluation | None) -> list[int]:
    """1 for each general question that was answered right, else 0; empty where none was asked."""
    return list(evaluation.general_questions.get("marks", ())) if evaluation else []


def of_run(run: TrainingRun) -> Forgetting:
    """The run's adapter beside the base model: as scored with it, or once for all runs of its study."""
    return Forgetting(base_beside(run), _newest(run.evaluations.all(), Evaluation.Subject.ADAPTER))


def base_beside(run: TrainingRun) -> Evaluation | None:
    """The base model's evaluation that a run's is read beside: its own, else that of its study."""
    own = _newest(run.evaluations.all(), Evaluation.Subject.BASE)
    if own or run.study_arm_id is None:
        return own[0] if own else None
    bases = Evaluation.objects.ended().filter(subject=Evaluation.Subject.BASE)
    return bases.filter(run__study_arm__study__arms=run.study_arm_id).order_by("-pk").first()


def scores_beside_base(run: TrainingRun) -> dict[str, dict[str, Any]]:
    """`run.scores()` with the base model's where a study has scored it with another run."""
    base = base_beside(run)
    return ({"base": base.metrics} if base else {}) | run.scores()


def of_study(study: Study) -> dict[str, Forgetting]:
    """Every arm beside the study's base model, by name; without a query where facts were fetched."""
    everything = (one for arm in study.arms.all() for run in arm.runs.all() for one in run.evaluations.all())
    base = next(iter(_newest(everything, Evaluation.Subject.BASE)), None)
    return {
        arm.name: Forgetting(
            base,
            [
                one
                for run in arm.final_runs()
                for one in _newest(run.evaluations.all(), Evaluation.Subject.ADAPTER)
            ],
        )
        for arm in study.arms.all()
    }


def of_comparison(comparison: Comparison) -> dict[str, Forgetting]:
    """Every arm beside its own base model's evaluation, else beside that of the same model on these rows."""
    found = {}
    for arm in comparison.scored:
        other = comparison.bases.get(str(arm.first.base_model))
        own = _newest(arm.first.evaluations.all(), Evaluation.Subject.BASE)
        base = own[0] if own else other
        found[arm.name] = Forgetting(base, list(arm.evaluations().values()))
    return found


def _newest(evaluations: Iterable[Evaluation], subject: str) -> list[Evaluation]:
    """The newest one with results, if any."""
    ended = [one for one in evaluations if one.subject == subject and one.state == State.SUCCEEDED]
    return [max(ended, key=lambda one: one.pk)] if ended else []


def _loss(evaluation: Evaluation | None) -> float | None:
    loss = evaluation.metrics.get("general_loss") if evaluation else None
    return None if loss is None else float(loss)


def _asked_alike(one: Evaluation, other: Evaluation | None) -> bool:
    """Whether both answered the very same questions."""
    digest = one.general_questions.get("sha256")
    return bool(digest and other and digest == other.general_questions.get("sha256"))
