"""One arm of a training: its spec, its rows, and the state that a checkpoint keeps.

Knows nothing of the loop that trains it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workers.contract.errors import DataError, Diverged, RunError
from workers.contract.events import Message, Report, ShouldStop
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import SPLITS, TrainSpec
from workers.contract.validation import MOST_ROWS, plan_validation
from workers.engine import runtime
from workers.engine.base_models.model import read_config
from workers.engine.token_cache import TokenCache
from workers.engine.training import lora
from workers.engine.training.data import Split, encode_rows, epoch_order, micro_batches, step_rows
from workers.engine.training.encoding import Example, Ids
from workers.engine.training.loss import PROVEN_TYPES
from workers.engine.training.validation import Validation


@dataclass
class Arm:
    """An adapter in training."""

    index: int
    spec: TrainSpec
    examples: dict[int, Example]  # by position in the training split: those that the arm draws
    positions: Sequence[int]  # in the training split: those that can be drawn
    validation_examples: list[Example]
    total_steps: int
    validated_after: Collection[int] = ()  # steps
    row_lengths: Ids | None = None  # of `positions`, if rows of a step have similar lengths
    parameters: list[nn.Parameter] = field(default_factory=list)
    optimizer: Any = None
    random_state: Any = None  # of the dropout generator, uint8 on the CPU
    step: int = 0  # completed optimizer steps
    validated_step: int = -1  # the last step whose validation loss is known
    # In main memory: the latest whose validation loss is not significantly above the lowest one.
    best_weights: list[Tensor] = field(default_factory=list)
    best_weights_step: int = 0  # 0: no weights are known to be the best
    best_weights_loss: float | None = None
    lowest_row_losses: list[float] = field(default_factory=list)  # of that lowest one
    tokens: int = 0
    seconds: float = 0.0  # in its own turns
    peak_memory_bytes: int = 0  # in its own turns, less what other arms keep; 0 if it trains alone
    train_loss: float = math.nan
    validation_loss: float | None = None
    best_validation_loss: float | None = None  # that of step 0 included
    best_validation_step: int = 0
    error: RunError | None = None
    has_ended: bool = False  # its outcome has been reported, now or by an earlier attempt

    @property
    def name(self) -> str:
        """Return PEFT's name of its adapter."""
        return lora.arm_name(self.index)

    @property
    def is_live(self) -> bool:
        return self.error is None and not self.has_ended

    def has_turn(self, step: int) -> bool:
        """Return whether to train or validate it now: a resumed arm may be ahead of the others."""
        return self.is_live and self.step <= step <= self.total_steps

    @property
    def is_finished(self) -> bool:
        """Return whether only its adapter remains to be saved."""
        is_validated = self.validated_step == self.total_steps or not self.validation_examples
        return self.is_live and self.step == self.total_steps and is_validated

    def due_validations(self) -> list[int]:
        """Return the steps to validate now: the completed one, and after the first step also step 0.

        The untrained adapter (step 0) changes nothing, so that validation needs no adapter and can wait.
        """
        due = [step for step in self.validated_after if self.validated_step < step <= self.step]
        return due if self.validation_examples else []

    def create_optimizer(self, model: Any, device: torch.device) -> None:
        """Create AdamW over the adapter's weights alone, and seed the adapter's dropout.

        The loop sets the learning rate of each step, multiplied by each group's `ratio`. LoRA+ (arXiv
        2402.12354): lr(B) = loraplus_lr_ratio * lr(A).
        """
        learn = self.spec.hyperparameters
        model.set_adapter(self.name)
        named_parameters = lora.arm_parameters(model, self.name)
        self.parameters = list(named_parameters.values())
        by_ratio: dict[float, list[nn.Parameter]] = {}
        for path, parameter in named_parameters.items():
            is_b = "lora_B" in path or "lora_embedding_B" in path
            by_ratio.setdefault(learn.loraplus_lr_ratio if is_b else 1.0, []).append(parameter)
        groups = [{"params": parameters, "ratio": ratio} for ratio, parameters in by_ratio.items()]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=learn.weight_decay, fused=True)
        torch.manual_seed(learn.seed)
        self.random_state = runtime.random_state(device)

    def step_examples(self, step: int) -> list[list[Example]]:
        """Return the micro-batches of optimizer step `step`, rows of similar length together."""
        learn = self.spec.hyperparameters
        count = len(self.positions)
        order = step_rows(count, learn.rows_per_step, learn.seed, step, self.row_lengths)
        rows = [self.examples[self.positions[index]] for index in order]
        return micro_batches(rows, learn.per_device_train_batch_size)

    def validation_batches(self) -> list[list[Example]]:
        """Return the validation rows in micro-batches, rows of similar length together."""
        return micro_batches(self.validation_examples, self.spec.hyperparameters.per_device_train_batch_size)

    def record_step(self, step: int, loss: float, tokens: int, seconds: float, random_state: Tensor) -> None:
        """Record a completed step; `random_state` is the dropout generator's after it."""
        self.step, self.train_loss, self.random_state = step, loss, random_state
        self.tokens += tokens
        self.seconds += seconds

    def record_divergence(self, step: int, loss: float, grad_norm: float) -> None:
        """Record that the loss or the gradient norm of `step` is not finite, so that the arm ends."""
        name, rate = self.spec.name, self.spec.hyperparameters.learning_rate
        value = "gradient norm" if math.isfinite(loss) else "loss"
        self.step = step
        self.error = Diverged(
            f"The {value} was not finite in step {step:,} of {self.total_steps:,} (loss {loss:g}, gradient "
            f"norm {grad_norm:g}), so {name} was stopped. Use a lower `learning_rate` than {rate:g}, for "
            f"example {rate / 3:.1g}."
        )
        self.optimizer.zero_grad()

    def record_peak_memory(self, peak: int, arms: Sequence[Arm], device: torch.device) -> None:
        """Record the peak of its turns in bytes, less what other arms keep: what it would need alone."""
        if len(arms) == 1:
            return  # the peak of the whole process is reported
        others = sum(arm.device_bytes(device) for arm in arms if arm is not self)
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak - others)

    def device_bytes(self, device: torch.device) -> int:
        """Return the bytes that it keeps on the device between turns: weights, moments, best weights."""
        states = self.optimizer.state.values() if self.optimizer else ()
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        tensors = [*self.parameters, *moments, *self.best_weights]
        return sum(tensor.nbytes for tensor in tensors if tensor.device.type == device.type)

    def record_validation(self, step: int, validation: Validation) -> None:
        """Record the validation of the present step, and the weights unless earlier ones are better.

        A few rows make the loss noisy, so earlier weights are better only if the present loss is
        significantly above theirs (`Validation.is_worse_than`). Of step 0 only the loss is kept.
        """
        loss = validation.loss
        self.validation_loss, self.validated_step = loss, step
        if not math.isfinite(loss):
            return
        if self.best_validation_loss is None or loss < self.best_validation_loss:
            self.best_validation_loss, self.best_validation_step = loss, step
        if not step:
            return
        if not self.lowest_row_losses or sum(validation.row_losses) < sum(self.lowest_row_losses):
            self.lowest_row_losses = validation.row_losses
        comparisons = max(1, sum(step > 0 for step in self.validated_after) - 1)
        if not validation.is_worse_than(self.lowest_row_losses, comparisons):
            self.best_weights_loss, self.best_weights_step = loss, step
            self.best_weights = self.copied_weights()

    @contextmanager
    def with_best_weights(self) -> Iterator[int]:
        """Put the best weights into the model for a while, if any are known; yield the step they are from."""
        if not self.best_weights_step:
            yield self.step
            return
        present = self.copied_weights()
        self._load(self.best_weights)
        try:
            yield self.best_weights_step
        finally:
            # Later checkpoints hold this arm too, and a continued run needs its present weights.
            self._load(present)

    def copied_weights(self) -> list[Tensor]:
        """Return a copy of the present weights in main memory."""
        return [parameter.detach().to("cpu", copy=True) for parameter in self.parameters]

    def _load(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)


def check_shared(specs: Sequence[TrainSpec]) -> TrainSpec:
    """Return the first spec; raise RunError if the arms differ in what they must share."""
    if not specs:
        raise RunError("There is nothing to train: the list of specs is empty.")
    shared = [
        (spec.base, spec.data, spec.validation_data, spec.dtype, spec.hyperparameters.load_in_4bit)
        for spec in specs
    ]
    if any(settings != shared[0] for settings in shared):
        raise RunError(
            "Arms of one call must share the base model, the dataset version and the number format."
        )
    return specs[0]


def prepare_arms(
    specs: Sequence[TrainSpec],
    tokenizer: Any,
    report: Report,
    should_stop: ShouldStop,
    ended: Collection[int] = (),
) -> list[Arm]:
    """Tokenize and cut the rows that the arms will draw, and no others; report what was cut.

    Ignores `finish`: only a restored arm can have weights to publish. Raises Stopped, and DataError if the
    training split has no row with an answer to learn from.
    """

    def setup_stop() -> str:
        reason = should_stop()
        return "" if reason == "finish" else reason

    training = Split(specs[0].data, "train")
    if not len(training):
        raise DataError("The training split of this dataset has no rows. Upload more rows.")
    validation = _validation_split(specs[0], training, report)
    # Packed rows need no neighbours of their length.
    is_packed = read_config(Path(specs[0].base.path)).model_type in PROVEN_TYPES
    lengths = None if is_packed else training.characters()
    training_rows: dict[int, Example] = {}
    validation_rows: dict[int, Example] = {}

    # Rows of a dataset for validation alone are few, and its test rows are kept nowhere.
    kept = (training,) if specs[0].validation_data else (training, validation)
    caches = {split: TokenCache(specs[0], split.name, tokenizer) for split in kept}

    def read(split: Split, known: dict[int, Example], wanted: Sequence[int]) -> None:
        cache = caches.get(split)
        if cache:
            known.update(cache.read(index for index in wanted if index not in known))
        missing = [index for index in wanted if index not in known]
        if missing:
            encoded = encode_rows(tokenizer, split, missing, report=report, should_stop=setup_stop)
            known.update(encoded)
            if cache:
                cache.add(encoded)

    arms = []
    for index, spec in enumerate(specs):
        learn = spec.hyperparameters
        needed = _needed_positions(learn, len(training), lengths)
        read(training, training_rows, needed)
        examples = {place: training_rows[place].truncate(learn.max_length) for place in needed}
        positions: Sequence[int] = range(len(training))
        if not all(example.target_count for example in examples.values()):
            # Rows with nothing to learn leave the draw, so every row must be known first.
            read(training, training_rows, positions)
            examples = {place: training_rows[place].truncate(learn.max_length) for place in positions}
            positions = [place for place in positions if examples[place].target_count]
            if not positions:
                raise _nothing_to_learn(list(training_rows.values()), learn.max_length)
        _report_cuts([training_rows[place] for place in examples], learn.max_length, report)
        steps = learn.total_steps(len(positions))
        shuffled = epoch_order(len(validation), 0, 0).tolist()
        row_cost = 1.0
        if spec.validation_data:
            read(validation, validation_rows, shuffled[:MOST_ROWS])
            candidates = [validation_rows[place].truncate(learn.max_length) for place in shuffled[:MOST_ROWS]]
            row_cost = _mean_length(candidates) / _mean_length(examples.values())
        trained_rows = steps * min(learn.rows_per_step, len(positions))
        plan = plan_validation(steps, trained_rows, len(validation), row_cost)
        count = plan.rows if spec.validation_rows is None else spec.validation_rows
        every = spec.validation_steps
        validated_after = (*range(0, steps, every), steps) if every else plan.steps
        drawn = sorted(shuffled[:count])
        read(validation, validation_rows, drawn)
        cut = [validation_rows[place].truncate(learn.max_length) for place in drawn]
        held_out = [example for example in cut if example.target_count]
        if not held_out:
            text = "No validation row has an answer to learn from, so there is no validation loss."
            report(Message(text, "warning"))
        own_lengths = None if lengths is None else lengths[positions]
        arm = Arm(index, spec, examples, positions, held_out, steps, validated_after, own_lengths)
        arm.has_ended = index in ended
        arms.append(arm)
    runtime.stop_if_asked(setup_stop)
    return arms


def _validation_split(spec: TrainSpec, training: Split, report: Report) -> Split:
    """Return the rows to validate on; report how many of another dataset are training rows too."""
    if spec.validation_data is None:
        return Split(spec.data, "validation")
    validation = Split(spec.validation_data, *SPLITS)
    if shared := validation.count_rows_in(training):
        text = (
            f"{shared:,} of the {len(validation):,} validation rows are also training rows, so the "
            "validation loss is lower than on new rows."
        )
        report(Message(text, "warning"))
    return validation


def _mean_length(examples: Collection[Example]) -> float:
    return sum(len(example.ids) for example in examples) / len(examples)


def _needed_positions(learn: Hyperparameters, count: int, lengths: Ids | None) -> list[int]:
    """Return the sorted positions of the rows that an arm draws in all its steps."""
    steps = min(learn.total_steps(count), math.ceil(count / learn.rows_per_step))
    if steps * learn.rows_per_step >= count:
        return list(range(count))
    numbers = range(1, steps + 1)
    orders = (step_rows(count, learn.rows_per_step, learn.seed, step, lengths) for step in numbers)
    return sorted(row for order in orders for row in order)


def _nothing_to_learn(examples: list[Example], max_length: int) -> DataError:
    answered = [example for example in examples if example.target_count]
    if not answered:
        return DataError(
            f"None of the {len(examples):,} training rows has an answer to learn from. Each chat needs an "
            "assistant message whose weight is not 0."
        )
    shortest = min(int(example.loss_mask.argmax()) for example in answered)
    longest = max(len(example.ids) for example in answered)
    return DataError(
        f"`max_length` {max_length:,} cuts off the answer of all {len(examples):,} training rows: "
        f"the shortest prompt alone has {shortest:,} tokens. Set `max_length` to at least {shortest + 1:,}; "
        f"{longest:,} keeps every row whole.",
        code="labels_cut_off",
    )


def _report_cuts(examples: list[Example], max_length: int, report: Report) -> None:
    long = [example for example in examples if len(example.ids) > max_length]
    lost = sum(
        example.target_count > 0 and not example.truncate(max_length).target_count for example in examples
    )
    silent = sum(not example.target_count for example in examples)
    unstable = sum(not example.template_is_stable for example in examples)
    warnings = []
    if long:
        warnings.append(
            f"{len(long):,} of {len(examples):,} rows are longer than `max_length` {max_length:,} and "
            f"were cut; {lost:,} of them lost their whole answer and are left out. The longest has "
            f"{max(len(example.ids) for example in long):,} tokens."
        )
    if silent:
        warnings.append(f"{silent:,} rows have no answer to learn from and are left out.")
    if unstable:
        warnings.append(
            f"In {unstable:,} rows only the last answer is learned: this model's chat template writes "
            "earlier answers differently once the chat goes on."
        )
    for warning in warnings:
        report(Message(warning, "warning"))
