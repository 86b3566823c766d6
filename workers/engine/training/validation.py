"""Losses of validation rows, and whether they tell two checkpoints of a run apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from workers.contract.events import ShouldStop
from workers.engine.runtime import stop_if_asked
from workers.engine.training.encoding import Example
from workers.engine.training.loss import Scorer

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Validation:
    """One validation, row by row.

    `row_losses`: cross-entropy in nats, summed over the labelled tokens of a row; `row_tokens`: their number.
    `correct`: labelled tokens of all rows that are predicted correctly.
    """

    row_losses: list[float]
    row_tokens: list[int]
    correct: int

    @property
    def loss(self) -> float:
        """Return the mean loss of all labelled tokens in nats."""
        return math.fsum(self.row_losses) / sum(self.row_tokens)

    @property
    def metrics(self) -> dict[str, float]:
        """Return the loss, and the share of labelled tokens that are predicted correctly."""
        accuracy = self.correct / sum(self.row_tokens)
        return {"validation/loss": self.loss, "validation/token_accuracy": accuracy}

    def is_worse_than(self, row_losses: Sequence[float], comparisons: int = 1) -> bool:
        """Return whether its loss is significantly above that of the same rows.

        A one-sided paired z-test at 5 %, divided by the `comparisons` of a run (Bonferroni), because the
        lowest of several losses is low by chance too. With a row's difference d, its tokens t and
        R = sum(d) / sum(t), the standard error of R is sqrt(n / (n - 1) * sum((d - R * t)^2)) / sum(t): that
        of a ratio (Cochran, Sampling Techniques, 1977, section 6.4). One row alone has none.
        """
        difference, tokens = np.subtract(self.row_losses, row_losses), np.asarray(self.row_tokens)
        ratio = difference.sum() / tokens.sum()
        count = len(tokens)
        if count == 1:
            return bool(ratio > 0)
        squares = np.square(difference - ratio * tokens).sum()
        error = math.sqrt(count / (count - 1) * squares) / tokens.sum()
        return bool(ratio > NormalDist().inv_cdf(1 - SIGNIFICANCE / comparisons) * error)


@torch.no_grad()
def validate(
    scorer: Scorer,
    micro_batches: Sequence[Sequence[Example]],
    device: torch.device,
    should_stop: ShouldStop,
    keep_alive: Callable[[], None],
) -> Validation:
    """Return the model's losses of the rows, in their order. Raises Stopped."""
    tokens = [example.target_count for examples in micro_batches for example in examples]
    losses, correct = [], 0
    for batch in scorer.batches(micro_batches, device):
        keep_alive()
        stop_if_asked(should_stop)
        token_losses, is_correct = scorer.token_scores(batch)
        losses.append(token_losses.double().cpu())
        correct += int(is_correct.sum())
    rows = torch.split(torch.cat(losses), tokens)
    return Validation([float(row.sum()) for row in rows], tokens, correct)
