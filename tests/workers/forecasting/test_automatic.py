"""The learning rate of a base model, and the length that fits rows and time."""

from __future__ import annotations

import pytest

from workers.contract.hyperparameters import AUTOMATIC_LENGTHS, AutomaticLength
from workers.forecasting.automatic import automatic_learning_rate, automatic_steps

QUICK, THOROUGH = AUTOMATIC_LENGTHS["quick"], AUTOMATIC_LENGTHS["thorough"]


@pytest.mark.parametrize(
    ("hidden_size", "model_type", "rate"),
    [
        (576, "llama", 1.3e-3),
        (2000, "llama", 5e-4),
        (4096, "llama", 2.9e-4),
        (896, "qwen2", 5.3e-4),
        (4096, "qwen3_moe", 4.7e-4),
        (768, "gpt2", 5.4e-4),
        (4096, "mistral", 2.9e-4),
    ],
)
def test_rate_follows_the_published_rule(hidden_size: int, model_type: str, rate: float) -> None:
    assert automatic_learning_rate(hidden_size, model_type) == rate


@pytest.mark.parametrize(
    ("length", "steps_per_epoch", "seconds_per_step", "steps"),
    [
        (QUICK, 68, 1.0, 102),  # 1.5 epochs
        (QUICK, 40, 1.0, 100),
        (QUICK, 10, 1.0, 30),  # few rows: 3 epochs
        (QUICK, 1000, 1.0, 510),  # nine of ten minutes less the loading
        (QUICK, 1000, 100.0, 10),  # never fewer
        (THOROUGH, 68, 1.0, 204),
        (THOROUGH, 100_000, 2.0, 1605),
    ],
)
def test_steps_fit_rows_and_time(
    length: AutomaticLength, steps_per_epoch: int, seconds_per_step: float, steps: int
) -> None:
    assert automatic_steps(length, steps_per_epoch, lambda n: 30 + n * seconds_per_step) == steps
