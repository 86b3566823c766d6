"""Settings that the product chooses: the learning rate of a base model, and the length of a training.

Pure rules; a launch freezes their numbers. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from workers.contract.hyperparameters import FEW_STEPS, LIMITS, MOST_EPOCHS, AutomaticLength

# Constants of the published rule; see `automatic_learning_rate`.
FULL_FINE_TUNING_RATE, LORA_FACTOR, REFERENCE_WIDTH = 5e-5, 10, 2000
LLAMA_EXPONENT, QWEN_EXPONENT = 0.781, 0.0775
# With fewer steps nothing is learned, however slow the device is.
FEWEST_STEPS = 10
# Of the time that a length allows; the rest is for a device at a slower hour than when it was measured.
PLANNED_SHARE = 0.9


def automatic_learning_rate(hidden_size: int, model_type: str) -> float:
    """Return the learning rate for a base model of this width, with two significant digits.

    5e-5 * 10 * (2000 / hidden_size) ** p: ten times the rate of full fine-tuning, and nearly the same for all
    ranks at alpha 32 (Schulman et al., "LoRA Without Regret", Thinking Machines Lab, 2025, with the exponents
    p of their fit for Llama and Qwen, tinker-docs.thinkingmachines.ai/supervised-learning/sl-hyperparams).
    No exponent is published for other families: they get the lower of the two rates.
    """
    rates = {
        family: FULL_FINE_TUNING_RATE * LORA_FACTOR * (REFERENCE_WIDTH / hidden_size) ** exponent
        for family, exponent in (("llama", LLAMA_EXPONENT), ("qwen", QWEN_EXPONENT))
    }
    rate = next((rates[family] for family in rates if model_type.startswith(family)), min(rates.values()))
    return float(f"{rate:.2g}")


def automatic_steps(length: AutomaticLength, steps_per_epoch: int, seconds: Callable[[int], float]) -> int:
    """Return the most optimizer steps within the epochs and nine tenths of the seconds of a length.

    They are not fewer than ten. `seconds` forecasts a run of so many steps. Beyond a few steps it grows by
    the same time with each.
    """
    most = max(length.epochs * steps_per_epoch, min(FEW_STEPS, MOST_EPOCHS * steps_per_epoch))
    most = min(math.ceil(most), int(LIMITS["max_steps"][1]))
    planned = PLANNED_SHARE * length.seconds
    if seconds(most) <= planned:
        return most
    few = min(most, FEWEST_STEPS)
    per_step = (seconds(most) - seconds(few)) / max(1, most - few)
    return max(few, few + math.floor((planned - seconds(few)) / per_step)) if per_step else few
