"""Trains arms on one frozen base: `python -m workers.engine train spec.json out/`.

One spec is one arm; a single run is a study with one arm. Arms take turns inside each optimizer step and
share the base, the rows and the process, but neither seed, order, schedule nor fate. A run that was cut off
continues from its checkpoint as if nothing had happened. Knows nothing of queues.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.engine import artifacts, checkpoints, lora, runtime
from workers.engine.data import Example, Split, collate, encode_rows, epoch_order, micro_batches, step_rows
from workers.engine.loss import Scorer, make_scorer
from workers.engine.model import check_folder, check_max_length, load_base, load_tokenizer, watch
from workers.engine.runtime import stop_if_asked
from workers.errors import DataError, Diverged, RunError, Stopped
from workers.events import (
    ArmEnd,
    Message,
    Metrics,
    Progress,
    Report,
    ShouldStop,
    never_stop,
    print_event,
)
from workers.specs import Hyperparameters, TrainSpec

PROGRESS_SECONDS = 0.5
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
    tokens: int = 0
    seconds: float = 0.0
    train_loss: float = math.nan
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    best_step: int = 0
    error: RunError | None = None

    @property
    def name(self) -> str:
        return lora.arm_name(self.index)

    @property
    def validate_every(self) -> int:
        return self.spec.validation_steps or max(1, round(self.total / VALIDATIONS_PER_RUN))

    @property
    def is_training(self) -> bool:
        return self.error is None and self.step < self.total

    def step_examples(self, step: int) -> Iterator[list[Example]]:
        """The micro-batches of optimizer step `step`, rows of like length together."""
        learn = self.spec.hyperparameters
        order = step_rows(len(self.pool), learn.rows_per_step, learn.seed, step)
        rows = [self.rows[self.pool[index]] for index in order]
        yield from micro_batches(rows, learn.per_device_train_batch_size)


def train(
    specs: Sequence[TrainSpec],
    out_dir: Path,
    *,
    report: Report = print_event,
    should_stop: ShouldStop = never_stop,
    resume_from: Path | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_seconds: float = checkpoints.SECONDS,
) -> list[ArmEnd]:
    """Train every spec and write `out_dir/arm-<i>/adapter`. Raises only when no arm came through.

    `resume_from` is one checkpoint; new ones go below `checkpoint_dir`, none without it.
    """
    kept = checkpoints.load(resume_from) if resume_from else None
    first = _check_shared(specs)
    started = time.monotonic()

    # --- Load: tokenizer and rows before weights, so that bad data is told early -------------------------
    check_folder(first.base)
    device = runtime.pick_device()
    dtype = kept.dtype if kept else runtime.pick_dtype(first.dtype, device)
    torch.set_num_threads(runtime.thread_count())
    torch.manual_seed(first.hyperparameters.seed)
    report(Progress("tokenizing"))
    tokenizer = load_tokenizer(first.base)
    arms = _prepare_arms(specs, tokenizer, report, should_stop)
    stop_if_asked(should_stop)
    report(Progress("loading"))
    base = load_base(first.base, dtype, device)
    for spec in specs:
        check_max_length(base, spec.base, spec.hyperparameters.max_length)
    watch(base, lambda: stop_if_asked(should_stop))
    origin = checkpoints.origin(specs, arms, base)
    keeper = checkpoints.Keeper(checkpoint_dir, checkpoint_seconds, report, origin, dtype, device, started)

    # --- Attach: PEFT's modules, counted; one AdamW per arm on fp32 adapter weights ----------------------
    model = lora.attach(base, specs)
    for arm in arms:
        lora.activate(model, arm.name)
        arm.parameters = lora.arm_parameters(model, arm.name)
        learn = arm.spec.hyperparameters
        arm.optimizer = torch.optim.AdamW(
            arm.parameters, lr=learn.learning_rate, weight_decay=learn.weight_decay
        )
        torch.manual_seed(learn.seed)
        arm.random_state = runtime.random_state(device)
    scorer = make_scorer(model, base, collate(list(arms[0].rows.values())[:2], device))
    for arm in arms:
        report(Message(_arithmetic(arm, base, dtype)))
    if kept:
        checkpoints.restore(kept, keeper, arms)

    # --- Loop ------------------------------------------------------------------------------------------
    steps = max(arm.total for arm in arms)
    begin = min((arm.step for arm in arms if arm.is_training), default=steps)
    loop_started = told = time.monotonic()
    ends = [_end(arm, "failed", report, error=arm.error) for arm in arms if arm.error]
    if kept:
        report(Message(f"Continues from step {begin:,}."))
    report(Progress("training", begin, steps))
    try:
        for step in range(begin, steps + 1):
            validated = False
            for arm in arms:
                if arm.error is not None or not arm.step <= step <= arm.total:
                    continue
                turn_started = time.monotonic()
                if len(arms) > 1:
                    lora.activate(model, arm.name)

                # One optimizer step: each micro-batch adds its share of the mean over the step's labels.
                # A resumed arm may have this step behind it already, and only its held-out loss to come.
                if step > arm.step:
                    batches = list(arm.step_examples(step))
                    labelled = sum(example.labelled for batch in batches for example in batch)
                    rate = learning_rate(arm.spec.hyperparameters, step, arm.total)
                    loss_sum, tokens = 0.0, 0
                    drops = arm.spec.hyperparameters.lora_dropout > 0
                    shares = (
                        scorer.shares and not drops
                    )  # each row draws its own dropout, so it shares nothing
                    lora.set_dropout(model, drops)
                    runtime.set_random_state(arm.random_state, device)
                    for examples in batches:
                        batch = collate(examples, device, share=shares)
                        loss: Any = scorer.training_loss(batch, labelled)
                        loss.backward()
                        loss_sum += float(loss.detach())
                        tokens += batch.tokens
                    drawn = runtime.random_state(device)
                    norm = float(
                        nn.utils.clip_grad_norm_(arm.parameters, arm.spec.hyperparameters.max_grad_norm)
                    )
                    if not (math.isfinite(loss_sum) and math.isfinite(norm)):
                        arm.step = step
                        arm.error = _diverged(arm, step, loss_sum, norm)
                        ends.append(_end(arm, "failed", report, error=arm.error))
                        arm.optimizer.zero_grad()
                        continue
                    for group in arm.optimizer.param_groups:
                        group["lr"] = rate
                    arm.optimizer.step()
                    arm.optimizer.zero_grad()
                    arm.step, arm.random_state = step, drawn
                    seconds = time.monotonic() - turn_started
                    arm.tokens, arm.seconds, arm.train_loss = (
                        arm.tokens + tokens,
                        arm.seconds + seconds,
                        loss_sum,
                    )
                    values = {
                        "train/loss": loss_sum,
                        "train/learning_rate": rate,
                        "train/grad_norm": norm,
                        "train/tokens_per_second": tokens / max(seconds, 1e-9),
                        "system/memory_bytes": float(runtime.peak_memory_bytes(device)),
                    }
                    keeper.tell(Metrics(arm.index, step, values))

                # Held-out loss before the first step, on schedule, and after the last.
                is_due = step % arm.validate_every == 0 or step == arm.total
                if arm.validation and is_due and arm.validated < step:
                    lora.set_dropout(model, False)
                    arm.validation_loss = validation_loss(scorer, arm, device, should_stop)
                    if arm.best_validation_loss is None or arm.validation_loss < arm.best_validation_loss:
                        arm.best_validation_loss, arm.best_step = arm.validation_loss, step
                    arm.validated, validated = step, True
                    keeper.tell(Metrics(arm.index, step, {"validation/loss": arm.validation_loss}))

            if validated or step == steps or keeper.is_due:
                keeper.write(arms)
            now = time.monotonic()
            if step > begin and (now - told >= PROGRESS_SECONDS or step == steps):
                told = now
                left = (now - loop_started) / (step - begin) * (steps - step)
                report(Progress("training", step, steps, round(left, 1)))
    except Stopped as stop:
        if stop.reason == "drain":
            keeper.write(arms)
        else:
            for arm in arms:
                if arm.error is None:
                    _end(arm, "cancelled", report)
        raise

    # --- Save ------------------------------------------------------------------------------------------
    report(Progress("saving"))
    for arm in arms:
        if arm.error is None:
            summary = _summary(arm, dtype, device) | {"wall_seconds": time.monotonic() - keeper.began}
            artifact = artifacts.save_arm(model, tokenizer, arm.spec, out_dir, arm.index, summary)
            report(artifact)
            summary["adapter_bytes"] = artifacts.adapter_bytes(out_dir, artifact)
            ends.append(_end(arm, "succeeded", report, summary=summary))
    failed = [arm.error for arm in arms if arm.error is not None]
    if len(failed) == len(arms):
        raise failed[0]
    return sorted(ends, key=lambda end: end.arm)


def learning_rate(learn: Hyperparameters, step: int, total: int) -> float:
    """The rate of step 1..total: linear warm-up, then cosine or linear towards zero, or constant."""
    warm = math.ceil(learn.warmup_ratio * total)
    if step <= warm:
        return learn.learning_rate * step / (warm + 1)
    done = (step - 1 - warm) / max(1, total - warm)
    shares = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return learn.learning_rate * shares[learn.lr_scheduler_type]


@torch.no_grad()
def validation_loss(scorer: Scorer, arm: Arm, device: torch.device, should_stop: ShouldStop) -> float:
    """Mean over all labelled tokens of the arm's held-out rows."""
    total, tokens = 0.0, 0
    for examples in micro_batches(arm.validation, arm.spec.hyperparameters.per_device_train_batch_size):
        stop_if_asked(should_stop)
        losses = scorer.token_losses(collate(examples, device, share=scorer.shares))
        total, tokens = total + float(losses.double().sum()), tokens + len(losses)
    return total / tokens


# Before the loop


def _check_shared(specs: Sequence[TrainSpec]) -> TrainSpec:
    if not specs:
        raise RunError("There is nothing to train: the list of specs is empty.")
    first = specs[0]
    for spec in specs:
        if (spec.base, spec.data, spec.dtype) != (first.base, first.data, first.dtype):
            raise RunError(
                "Arms of one call must share the base model, the dataset version and the number format."
            )
    return first


def _prepare_arms(
    specs: Sequence[TrainSpec], tokenizer: Any, report: Report, should_stop: ShouldStop
) -> list[Arm]:
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


def _arithmetic(arm: Arm, base: Any, dtype: torch.dtype) -> str:
    """The sums of the run, in words, before it starts."""
    learn = arm.spec.hyperparameters
    per_epoch = math.ceil(len(arm.pool) / learn.rows_per_step)
    tokens = sum(len(example.ids) for example in arm.rows.values())
    labelled = sum(example.labelled for example in arm.rows.values())
    frozen = sum(item.numel() for path, item in base.named_parameters() if "lora_" not in path)
    trainable = sum(parameter.numel() for parameter in arm.parameters)
    batch = f"{learn.per_device_train_batch_size} x {learn.gradient_accumulation_steps}"
    sentences = (
        f"{arm.spec.name}: {len(arm.pool):,} rows to draw from.",
        f"{arm.total:,} steps of {learn.rows_per_step:,} rows ({batch}), {arm.total / per_epoch:.2f} epochs.",
        f"The {len(arm.rows):,} rows read have {tokens:,} tokens, of which {labelled:,} are learned.",
        f"{trainable:,} parameters train, {trainable / frozen:.3%} of the {frozen:,} frozen ones.",
        f"The frozen ones are kept as {_dtype_name(dtype)}.",
    )
    return " ".join(sentences)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# After the loop


def _diverged(arm: Arm, step: int, loss: float, norm: float) -> Diverged:
    what = "loss" if not math.isfinite(loss) else "gradient norm"
    rate = arm.spec.hyperparameters.learning_rate
    return Diverged(
        f"The {what} was no finite number in step {step:,} of {arm.total:,} (loss {loss:g}, gradient norm "
        f"{norm:g}), so {arm.spec.name} was stopped. Use a lower `learning_rate` than {rate:g}, for example "
        f"{rate / 3:.1g}."
    )


def _end(
    arm: Arm,
    outcome: str,
    report: Report,
    *,
    error: RunError | None = None,
    summary: dict[str, Any] | None = None,
) -> ArmEnd:
    code, message = (error.code, error.message) if error else ("", "")
    end = ArmEnd(arm.index, outcome, arm.step, code, message, summary or {})
    report(end)
    return end


def _summary(arm: Arm, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    return {
        "train_loss": arm.train_loss,
        "validation_loss": arm.validation_loss,
        "best_validation_loss": arm.best_validation_loss,
        "best_validation_step": arm.best_step,
        "steps": arm.step,
        "seconds": arm.seconds,
        "tokens": arm.tokens,
        "tokens_per_second": arm.tokens / max(arm.seconds, 1e-9),
        "peak_memory_bytes": runtime.peak_memory_bytes(device),
        "trainable_parameters": sum(parameter.numel() for parameter in arm.parameters),
        "dtype": _dtype_name(dtype),
        "device": runtime.device_name(device),
        "threads": runtime.thread_count(),
    }
