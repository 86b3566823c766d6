"""Hyperparameters of a training: default, limits, label and help text of each, and what can be automatic.

The form, the API schema, a clone and the settings table are built from the fields of `Hyperparameters`. A new
one takes two edits: a field here and its use in the engine. Forms and requests may leave the learning rate
and the length to the product (`workers.forecasting.automatic`); the settings here are always numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from dataclasses import dataclass, field
from typing import Any

from workers.contract.errors import SpecError

# Groups of settings, in the order in which pages show them.
LENGTH, ADAPTER, OPTIMIZER, BATCHES = "length", "adapter", "optimizer", "batches"
# The value of an automatic setting in a request, which may leave it out as well.
AUTOMATIC = "auto"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Name, type, limits and texts of one hyperparameter."""

    name: str
    kind: type  # int, float, bool or str
    default: Any  # None if the setting may be left out
    group: str
    label: str
    explanation: str
    limits: tuple[float, float] | None = None
    choices: tuple[tuple[str, str], ...] = ()  # (value as text, label)
    may_be_automatic: bool = False  # chosen for the base model, unless a number is given


@dataclass(frozen=True, kw_only=True)
class AutomaticLength:
    """A length that is chosen from the rows and the time of a step: at most so many epochs and seconds."""

    name: str
    label: str
    explanation: str
    epochs: float
    seconds: float


AUTOMATIC_LENGTHS = {
    length.name: length
    for length in (
        AutomaticLength(
            name="quick",
            label="Quick",
            explanation="At most 10 minutes and 1.5 passes over the rows; few rows are seen up to 3 times.",
            epochs=1.5,
            seconds=600,
        ),
        AutomaticLength(
            name="thorough",
            label="Thorough",
            explanation="At most an hour and 3 passes over the rows.",
            epochs=3,
            seconds=3600,
        ),
    )
}
DEFAULT_LENGTH = "quick"
# Datasets of few rows get more passes, up to this number of steps.
FEW_STEPS, MOST_EPOCHS = 100, 3


def _setting(default: Any, group: str, label: str, explanation: str, **options: Any) -> Any:
    """Return a dataclass field that carries the texts and limits of its `Setting`."""
    metadata = {"group": group, "label": label, "explanation": explanation, **options}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Settings of one arm, under PEFT's and HF Trainer's names.

    `lora_alpha` None becomes 2r; a run without a length gets 100 steps.
    """

    max_steps: int | None = _setting(
        None,
        LENGTH,
        "Steps",
        "Optimizer steps in all. Too few: little is learned; too many: the rows are memorised.",
        limits=(1, 1_000_000),
    )
    num_train_epochs: float | None = _setting(
        None,
        LENGTH,
        "Epochs",
        "Passes over the training rows. Too few: little is learned; too many: the rows are memorised.",
        limits=(0.01, 1000.0),
    )
    r: int = _setting(
        16,
        ADAPTER,
        "LoRA rank (r)",
        "Capacity of the adapter. Too low: the task does not fit; too high: a larger file, no gain.",
        limits=(1, 512),
    )
    lora_alpha: int | None = _setting(
        None,
        ADAPTER,
        "LoRA alpha",
        "Strength of the adapter; empty means twice the rank. Too low: little effect; too high: training "
        "becomes unstable.",
        limits=(1, 2048),
    )
    lora_dropout: float = _setting(
        0.0,
        ADAPTER,
        "LoRA dropout",
        "Share of the adapter's inputs that each step ignores. Can reduce overfitting on few rows. Too "
        "high: the adapter learns slowly.",
        limits=(0.0, 0.9),
    )
    use_rslora: bool = _setting(
        False,
        ADAPTER,
        "Rank-stabilized scaling (rsLoRA)",
        "Scales the adapter by alpha / √r instead of alpha / r. Useful for ranks of 64 and more. Each "
        "step has more effect, so tune the learning rate again.",
    )
    use_dora: bool = _setting(
        False,
        ADAPTER,
        "Weight decomposition (DoRA)",
        "Learns the magnitude and the direction of the weights separately. Steps take about a quarter "
        "longer; PEFT's own benchmark saw no gain. For linear layers only, without dropout.",
    )
    autocast_adapter_dtype: bool = _setting(
        True,
        ADAPTER,
        "Adapter precision",
        "The base model's precision halves the adapter's file and memory where that is bfloat16, as on a "
        "GPU, and makes updates coarser. On a CPU both are the same.",
        choices=(("True", "float32 (most precise)"), ("False", "Same as the base model")),
    )
    learning_rate: float = _setting(
        2e-4,
        OPTIMIZER,
        "Learning rate",
        "Size of each update. If empty, it is chosen for the width of the base model. Too low: nothing "
        "changes; too high: the loss jumps.",
        limits=(1e-7, 0.1),
        may_be_automatic=True,
    )
    lr_scheduler_type: str = _setting(
        "cosine",
        OPTIMIZER,
        "Learning rate schedule",
        "A falling learning rate lets training settle at its end.",
        choices=(
            ("cosine", "Cosine (smooth decrease)"),
            ("linear", "Linear (even decrease)"),
            ("constant", "Constant"),
        ),
    )
    warmup_ratio: float = _setting(
        0.05,
        OPTIMIZER,
        "Warm-up ratio",
        "Share of the steps in which the learning rate rises from zero. Too low: a rough start; too "
        "high: time is lost.",
        limits=(0.0, 0.5),
    )
    loraplus_lr_ratio: float = _setting(
        1.0,
        OPTIMIZER,
        "Learning rate ratio (LoRA+)",
        "Factor by which the adapter's second matrix (B) learns faster than the first. 1 turns LoRA+ "
        "off; 16 is common. Use a lower learning rate with it.",
        limits=(1.0, 64.0),
    )
    weight_decay: float = _setting(
        0.0,
        OPTIMIZER,
        "Weight decay",
        "Pulls the adapter's weights towards zero at each step. Can reduce overfitting. Too high: little "
        "is learned.",
        limits=(0.0, 1.0),
    )
    max_grad_norm: float = _setting(
        1.0,
        OPTIMIZER,
        "Gradient clipping",
        "Largest norm of a step's gradient; larger ones are scaled down. Too low: learning is slow; too "
        "high: single rows can throw training off.",
        limits=(0.01, 100.0),
    )
    per_device_train_batch_size: int = _setting(
        8,
        BATCHES,
        "Batch size per device",
        "Rows processed at once. Too low: the device idles, steps are noisy; too high: memory runs out.",
        limits=(1, 1024),
    )
    gradient_accumulation_steps: int = _setting(
        1,
        BATCHES,
        "Gradient accumulation steps",
        "Batches per optimizer step: more rows per step without more memory. Too low: noisy steps; too "
        "high: few steps per epoch.",
        limits=(1, 1024),
    )
    max_length: int = _setting(
        512,
        BATCHES,
        "Maximum sequence length",
        "In tokens. Longer rows are cut at their end. Too low: answers are lost; too high: more memory.",
        limits=(16, 131_072),
    )
    gradient_checkpointing: bool = _setting(
        False,
        BATCHES,
        "Gradient checkpointing",
        "Computes activations again instead of storing them. Far less memory and the same result; each "
        "step takes about a quarter longer.",
    )
    # NF4 with double quantisation (QLoRA, arXiv 2305.14314).
    load_in_4bit: bool = _setting(
        False,
        BATCHES,
        "Base model in 4 bits (QLoRA)",
        "Needs about a quarter of the base model's memory. Its answers change a little, so the adapter "
        "is evaluated on the same 4 bits.",
    )
    seed: int = _setting(
        42,
        BATCHES,
        "Random seed",
        "Decides the order of rows and the adapter's first weights. Keep it to compare runs fairly.",
        limits=(0, 2**32 - 1),
    )

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise SpecError("max_steps", "Give `max_steps` or `num_train_epochs`, not both.")
        # Resolved here, so that a stored spec is complete.
        if self.lora_alpha is None:
            object.__setattr__(self, "lora_alpha", 2 * self.r)
        if self.max_steps is None and self.num_train_epochs is None:
            object.__setattr__(self, "max_steps", 100)
        for setting in SETTINGS.values():
            value = getattr(self, setting.name)
            if value is not None:
                _check(setting, value)
        if self.use_dora and self.lora_dropout:
            raise SpecError(
                "lora_dropout",
                "`lora_dropout` must be 0 with `use_dora`: PEFT applies no dropout to DoRA here.",
            )
        if self.load_in_4bit and not self.autocast_adapter_dtype:
            raise SpecError(
                "autocast_adapter_dtype",
                "`autocast_adapter_dtype` must stay on with `load_in_4bit`: no adapter is kept in 4 bits.",
            )

    @property
    def rows_per_step(self) -> int:
        """Return rows in one optimizer step: batch x accumulation."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def allows_shared_prefix(self) -> bool:
        """Return whether tokens with which all rows begin may be computed once for a whole batch.

        With dropout each row draws its own, and a layer that is computed twice fills no cache.
        """
        return not self.lora_dropout and not self.gradient_checkpointing

    def with_smaller_batch(self) -> Hyperparameters | None:
        """Return the same rows per step with at most half the batch size; None if there is no such split."""
        rows, limit = self.rows_per_step, int(LIMITS["gradient_accumulation_steps"][1])
        for batch in range(self.per_device_train_batch_size // 2, 0, -1):
            if rows % batch == 0 and rows // batch <= limit:
                return dataclasses.replace(
                    self, per_device_train_batch_size=batch, gradient_accumulation_steps=rows // batch
                )
        return None

    def total_steps(self, train_rows: int) -> int:
        """Return the optimizer steps for `train_rows` rows; the last step of an epoch may be short."""
        if self.max_steps is not None:
            return self.max_steps
        epochs = self.num_train_epochs or 0.0
        return max(1, math.ceil(epochs * math.ceil(train_rows / self.rows_per_step)))


def _settings() -> dict[str, Setting]:
    hints = typing.get_type_hints(Hyperparameters)
    settings = {}
    for item in dataclasses.fields(Hyperparameters):
        kinds = typing.get_args(hints[item.name]) or (hints[item.name],)
        settings[item.name] = Setting(name=item.name, kind=kinds[0], default=item.default, **item.metadata)
    return settings


SETTINGS = _settings()
# (lowest, highest) value that forms, the API and the specs accept.
LIMITS = {name: setting.limits for name, setting in SETTINGS.items() if setting.limits}


def frozen_hyperparameters(values: dict[str, Any]) -> Hyperparameters:
    """Build the hyperparameters of a run. A list reads many, and equal ones are checked once."""
    return _checked(tuple(values.items()))


@functools.lru_cache(maxsize=4096)
def _checked(items: tuple[tuple[str, Any], ...]) -> Hyperparameters:
    return Hyperparameters(**dict(items))


def hyperparameters_from(values: dict[str, Any]) -> Hyperparameters:
    """Build hyperparameters from loose values. Raises SpecError for an unknown name or a wrong value."""
    unknown = sorted(set(values) - set(SETTINGS))
    if unknown:
        raise SpecError(unknown[0], f"There is no setting `{unknown[0]}`.")
    return Hyperparameters(**{name: value for name, value in values.items() if value is not None})


def _check(setting: Setting, value: Any) -> None:
    name = setting.name
    if name in LIMITS:
        low, high = LIMITS[name]
        span = f"between {_format(low)} and {_format(high)}"
        # False for infinity, NaN, and integers beyond the range of a float.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise SpecError(name, f"`{name}` must be a number {span}.")
        if not low <= value <= high:
            raise SpecError(name, f"`{name}` is {_format(value)}. It must lie {span}.")
        if setting.kind is int and not isinstance(value, int):
            raise SpecError(name, f"`{name}` must be a whole number.")
    values = [value for value, _label in setting.choices]
    if setting.kind is str and value not in values:
        raise SpecError(name, f"`{name}` must be one of {', '.join(values)}.")


def _format(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**12 else f"{value:g}"
