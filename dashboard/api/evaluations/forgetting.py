"""Forgetting in the answers of runs and of studies."""

from __future__ import annotations

from dashboard.api.answer import Answer


class ChangeOut(Answer):
    """A mean with its paired 95 % interval."""

    mean: float
    low: float
    high: float


class ForgettingOut(Answer):
    """Changes outside of the trained data, against the base model; null if not measured.

    `general_loss`: mean loss per token on a fixed text. `general_accuracy`: share of the general questions
    answered correctly. Both are means over seeds.
    """

    general_loss: float | None
    general_loss_rise: float | None
    general_accuracy: float | None
    general_accuracy_change: ChangeOut | None
    base_general_loss: float | None
    base_general_accuracy: float | None
