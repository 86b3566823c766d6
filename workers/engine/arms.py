"""One arm of a training: its spec, its rows, what must survive a checkpoint, and what is told of it.

Knows nothing of the loop that trains it, nor of the other arms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workers.engine import lora, runtime
from workers.engine.data import Example, Split, encode_rows, epoch_order, micro_batches, step_rows
from workers.engine.model import kept_as
from workers.errors import DataError, Diverged, RunError
from workers.events import ArmEnd, Message, Report, ShouldStop
from workers.specs import Hyperparameters, TrainSpec

VALIDATIONS_PER_RUN = 10


@dataclass
class Arm:
    """One adapter on its way: its spec, its rows and everything that must survive a checkpoint."""

    index: int
    spec: TrainSpec
    rows: dict[int, Example]  # by position in the split: those that the arm draws
    pool: Sequence[int]  # positions that can be drawn
    validation: list[Example]
    total: int
    parameters: list[nn.Parameter] = field(default_factory=list)
    optimizer: Any = None
    random_state: Any = None
    step: int = 0  # completed optimizer steps
    validated: int = -1  # the last step whose held-out loss is known
    kept: list[Tensor] = field(default_factory=list)  # the weights with the lowest held-out loss so far
    kept_step: int = 0  # the step they are from; 0: none is known to be the best
    kept_loss: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0  # in its own turns and without the others, where several share the process
    train_loss: float = math.nan
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    best_step: int = 0
    error: RunError | None = None
    is_over: bool = False  # its end has been told, now or by an earlier attempt

    @property
    def name(self) -> str:
        return lora.arm_name(self.index)

    @property
    def validate_every(self) -> int:
        return self.spec.validation_steps or max(1, round(self.total / VALIDATIONS_PER_RUN))

    @property
    def is_live(self) -> bool:
        return self.error is None and not self.is_over

    @property
    def is_done(self) -> bool:
        """Whether only its adapter remains to be saved."""
        is_validated = self.validated == self.total or not self.validation
        return self.is_live and self.step == self.total and is_validated

    def is_due(self, step: int) -> bool:
        """Whether the held-out loss is to be measured: before the first step, on schedule, after the last."""
        on_schedule = step % self.validate_every == 0 or step == self.total
        return bool(self.validation) and on_schedule and self.validated < step

    def note_step(self, step: int, loss: float, tokens: int, seconds: float, drawn: Tensor) -> None:
        """Remember a completed step; `drawn` is the state of the dice after it."""
        self.step, self.train_loss, self.random_state = step, loss, drawn
        self.tokens += tokens
        self.seconds += seconds

    def held_bytes(self, device: torch.device) -> int:
        """What it keeps on the device between turns: weights, the optimizer's memory, the best weights."""
        state = self.optimizer.state.values() if self.optimizer else ()
        moments = [value for one in state for value in one.values() if isinstance(value, Tensor)]
        kept = [*self.parameters, *moments, *self.kept]
        return sum(tensor.nbytes for tensor in kept if tensor.device.type == device.type)

    def note_peak(self, peak: int, arms: Sequence[Arm], device: torch.device) -> None:
        """Remember the most memory of its turns, less what the others keep there: what it needs alone."""
        others = sum(arm.held_bytes(device) for arm in arms if arm is not self)
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak - others)

    def note_validation(self, loss: float) -> None:
        """Remember the held-out loss of the present step, and the weights when they are the best so far."""
        self.validation_loss, self.validated = loss, self.step
        if not math.isfinite(loss):
            return
        if self.best_validation_loss is None or loss < self.best_validation_loss:
            self.best_validation_loss, self.best_step = loss, self.step
        # Before the first step the adapter does nothing, so there is nothing to keep.
        if self.step and (self.kept_loss is None or loss < self.kept_loss):
            self.kept_loss, self.kept_step = loss, self.step
            self.keep_weights()

    def keep_weights(self) -> None:
        """Copy the present weights to main memory."""
        self.kept = self._copied()

    @contextmanager
    def best_weights(self) -> Iterator[int]:
        """Meanwhile the best weights are in place, where some are known; the step they are from."""
        if not self.kept_step:
            yield self.step
            return
        present = self._copied()
        self._put(self.kept)
        try:
            yield self.kept_step
        finally:
            # Later checkpoints hold this arm too: whoever continues it goes on from where it stood.
            self._put(present)

    def _copied(self) -> list[Tensor]:
        return [parameter.detach().to("cpu", copy=True) for parameter in self.parameters]

    def _put(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)

    def step_examples(self, step: int) -> Iterator[list[Example]]:
        """The micro-batches of optimizer step `step`, rows of like length together."""
        learn = self.spec.hyperparameters
        order = step_rows(len(self.pool), learn.rows_per_step, learn.seed, step)
        rows = [self.rows[self.pool[index]] for index in order]
        yield from micro_batches(rows, learn.per_device_train_batch_size)


def check_shared(specs: Sequence[TrainSpec]) -> TrainSpec:
    if not specs:
        raise RunError("There is nothing to train: the list of specs is empty.")
    first = specs[0]
    for spec in specs:
        if _shared(spec) != _shared(first):
            raise RunError(
                "Arms of one call must share the base model, the dataset version and the number format."
            )
    return first


def _shared(spec: TrainSpec) -> tuple[object, ...]:
    return spec.base, spec.data, spec.dtype, spec.hyperparameters.load_in_4bit


def prepare(specs: Sequence[TrainSpec], tokenizer: Any, report: Report, should_stop: ShouldStop) -> list[Arm]:
    """Tokenize the rows that the arms will draw, and no others; cut them; tell what was cut."""
    train_split, validation_split = Split(specs[0].data, "train"), Split(specs[0].data, "validation")
    if not len(train_split):
        raise DataError("The training split of this dataset has no rows. Upload more rows.")
    whole: dict[int, Example] = {}
    held_out: dict[int, Example] = {}

    def read(split: Split, known: dict[int, Example], wanted: Sequence[int]) -> None:
        missing = [index for index in wanted if index not in known]
        known.update(encode_rows(tokenizer, split, missing, report=report, should_stop=should_stop))

    arms = []
    for index, spec in enumerate(specs):
        learn = spec.hyperparameters
        needed = _rows_needed(learn, len(train_split))
        read(train_split, whole, needed)
        rows = {place: whole[place].cut(learn.max_length) for place in needed}
        pool: Sequence[int] = range(len(train_split))
        if not all(example.labelled for example in rows.values()):
            # Rows with nothing to learn leave the draw, so the draw must know every row first.
            read(train_split, whole, pool)
            rows = {place: whole[place].cut(learn.max_length) for place in pool}
            pool = [place for place in pool if rows[place].labelled]
            if not pool:
                raise _nothing_to_learn(list(whole.values()), learn.max_length)
        _tell_cuts([whole[place] for place in rows], learn.max_length, report)
        drawn = sorted(
            int(place) for place in epoch_order(len(validation_split), 0, 0)[: spec.validation_rows]
        )
        read(validation_split, held_out, drawn)
        validation = [held_out[place].cut(learn.max_length) for place in drawn]
        validation = [example for example in validation if example.labelled]
        if not validation:
            report(
                Message(
                    "No held-out row has an answer to learn from, so there is no validation loss.", "warning"
                )
            )
        arms.append(Arm(index, spec, rows, pool, validation, learn.total_steps(len(pool))))
    return arms


def _rows_needed(learn: Hyperparameters, count: int) -> list[int]:
    """Positions of the rows that an arm draws in all its steps, sorted."""
    steps = min(learn.total_steps(count), math.ceil(count / learn.rows_per_step))
    if steps * learn.rows_per_step >= count:
        return list(range(count))
    orders = (step_rows(count, learn.rows_per_step, learn.seed, step) for step in range(1, steps + 1))
    return sorted(row for order in orders for row in order)


def _nothing_to_learn(examples: list[Example], max_length: int) -> DataError:
    answered = [example for example in examples if example.labelled]
    if not answered:
        return DataError(
            f"None of the {len(examples):,} training rows has an answer to learn from. Each chat needs an "
            "assistant message whose weight is not 0."
        )
    shortest = min(int(example.learn.argmax()) for example in answered)
    longest = max(len(example.ids) for example in answered)
    return DataError(
        f"`max_length` {max_length:,} cuts off the answer of all {len(examples):,} training rows: "
        f"the shortest prompt alone has {shortest:,} tokens. Set `max_length` to at least {shortest + 1:,}; "
        f"{longest:,} keeps every row whole.",
        code="labels_cut_off",
    )


def _tell_cuts(examples: list[Example], max_length: int, report: Report) -> None:
    long = [example for example in examples if len(example.ids) > max_length]
    lost = sum(example.labelled > 0 and not example.cut(max_length).labelled for example in examples)
    silent = sum(not example.labelled for example in examples)
    unstable = sum(not example.stable for example in examples)
    if long:
        report(
            Message(
                f"{len(long):,} of {len(examples):,} rows are longer than `max_length` {max_length:,} and "
                f"were cut; {lost:,} of them lost their whole answer and are left out. The longest has "
                f"{max(len(example.ids) for example in long):,} tokens.",
                "warning",
            )
        )
    if silent:
        report(Message(f"{silent:,} rows have no answer to learn from and are left out.", "warning"))
    if unstable:
        report(
            Message(
                f"In {unstable:,} rows only the last answer is learned: this model's chat template writes "
                "earlier answers differently once the chat goes on.",
                "warning",
            )
        )


def arithmetic(arm: Arm, frozen: int, dtype: torch.dtype) -> str:
    """The sums of the run, in words, before it starts; `frozen` numbers of the base stay as they are."""
    learn = arm.spec.hyperparameters
    per_epoch = math.ceil(len(arm.pool) / learn.rows_per_step)
    tokens = sum(len(example.ids) for example in arm.rows.values())
    labelled = sum(example.labelled for example in arm.rows.values())
    trainable = sum(parameter.numel() for parameter in arm.parameters)
    batch = f"{learn.per_device_train_batch_size} x {learn.gradient_accumulation_steps}"
    sentences = (
        f"{arm.spec.name}: {len(arm.pool):,} rows to draw from.",
        f"{arm.total:,} steps of {learn.rows_per_step:,} rows ({batch}), {arm.total / per_epoch:.2f} epochs.",
        f"The {len(arm.rows):,} rows read have {tokens:,} tokens, of which {labelled:,} are learned.",
        f"{trainable:,} parameters train, {trainable / frozen:.3%} of the {frozen:,} frozen ones.",
        f"The frozen ones are kept {kept_as(dtype_name(dtype), in_4bit=learn.load_in_4bit)}.",
    )
    return " ".join(sentences)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def diverged(arm: Arm, step: int, loss: float, norm: float) -> Diverged:
    what = "loss" if not math.isfinite(loss) else "gradient norm"
    rate = arm.spec.hyperparameters.learning_rate
    return Diverged(
        f"The {what} was no finite number in step {step:,} of {arm.total:,} (loss {loss:g}, gradient norm "
        f"{norm:g}), so {arm.spec.name} was stopped. Use a lower `learning_rate` than {rate:g}, for example "
        f"{rate / 3:.1g}."
    )


def end(
    arm: Arm,
    outcome: str,
    report: Report,
    *,
    error: RunError | None = None,
    summary: dict[str, Any] | None = None,
) -> ArmEnd:
    code, message = (error.code, error.message) if error else ("", "")
    arm.is_over = True
    told = ArmEnd(arm.index, outcome, arm.step, code, message, summary or {})
    report(told)
    return told


def summary_of(arm: Arm, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    return {
        "train_loss": arm.train_loss,
        "validation_loss": arm.validation_loss,
        "best_validation_loss": arm.best_validation_loss,
        "best_validation_step": arm.best_step,
        "steps": arm.step,
        "published_step": arm.step,
        "seconds": arm.seconds,
        "tokens": arm.tokens,
        "tokens_per_second": arm.tokens / max(arm.seconds, 1e-9),
        "peak_memory_bytes": arm.peak_memory_bytes or runtime.peak_memory_bytes(device),
        "trainable_parameters": sum(parameter.numel() for parameter in arm.parameters),
        "dtype": dtype_name(dtype),
        "device": runtime.device_name(device),
        "threads": runtime.thread_count(),
    }
