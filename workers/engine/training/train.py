"""Trains arms on one frozen base model: `python -m workers.engine train spec.json out/`.

One spec is one arm; a single run is a study with one arm. Arms take turns inside each optimizer step and
share the base model, the layers below the lowest adapted one, the dataset and the process, but neither seed,
row order, schedule nor outcome. A run that was interrupted continues from its checkpoint with the same
numbers. Knows nothing of queues or users.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from workers.contract.errors import Stopped
from workers.contract.events import ArmEnd, Metrics, Progress, Report, ShouldStop, never_stop, print_event
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import TrainSpec
from workers.engine import runtime
from workers.engine.base_models.model import add_stop_hooks, check_folder, load_base, load_tokenizer
from workers.engine.runtime import stop_if_asked
from workers.engine.training import checkpoints, fingerprint, fused, lora
from workers.engine.training.arms import check_shared, prepare_arms
from workers.engine.training.loss import make_scorer
from workers.engine.training.reporters import OutcomeReporter, ProgressReporter, step_metrics
from workers.engine.training.trunk import SharedTrunk
from workers.engine.training.validation import validate


def train(
    specs: Sequence[TrainSpec],
    out_dir: Path,
    *,
    report: Report = print_event,
    should_stop: ShouldStop = never_stop,
    resume_from: Path | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_seconds: float = checkpoints.SECONDS,
    attempt: int = 0,
    ended: Collection[int] = (),
) -> list[ArmEnd]:
    """Train every spec and write `out_dir/arm-<i>/adapter`; raise the first error only if every arm failed.

    `resume_from` is one checkpoint. New ones go below `checkpoint_dir`, as long as no attempt later than
    `attempt` has taken ownership of it; without a folder none are written. `ended`: arms that reported their
    outcome in an earlier attempt, which are neither trained nor reported again.

    Raises Stopped when `should_stop` asks for it and no arm has an adapter to publish.
    """
    # Rows before weights, so that bad data is reported early.
    started, first = time.monotonic(), check_shared(specs)
    checkpoint = checkpoints.load(resume_from) if resume_from else None
    check_folder(first.base)
    device = runtime.pick_device()
    dtype = runtime.pick_dtype(checkpoint.dtype if checkpoint else first.dtype, device)
    torch.set_num_threads(runtime.thread_count())
    torch.manual_seed(first.hyperparameters.seed)
    report(Progress("tokenizing"))
    tokenizer = load_tokenizer(first.base)
    arms = prepare_arms(specs, tokenizer, report, should_stop, ended)

    # One base model carries the adapters of all arms.
    report(Progress("loading"))
    lora.check_specs(specs)
    base = load_base(first.base, dtype, device, in_4bit=first.hyperparameters.load_in_4bit)
    origin, frozen_parameters = fingerprint.origin(specs, arms, base), base.num_parameters()
    model = lora.attach(base, specs)
    fused.fuse(model)
    for arm in arms:
        arm.create_optimizer(model, device)
    scorer = make_scorer(model, base, list(arms[0].examples.values())[:2], device)
    trunk, modules = SharedTrunk(base, arms), list(model.modules())
    writer = checkpoints.CheckpointWriter(
        checkpoint_dir, checkpoint_seconds, report, origin, dtype, device, started, attempt
    )
    progress = ProgressReporter(arms, report)
    outcomes = OutcomeReporter(arms, model, tokenizer, out_dir, report, writer)
    progress.describe_arms(frozen_parameters, dtype)
    if checkpoint:
        checkpoints.restore(checkpoint, writer, arms)
        outcomes.report_restored_failures()
    add_stop_hooks(base, lambda: stop_if_asked(should_stop))

    try:
        # A resumed arm may have to validate the step that it completed.
        step = max(1, progress.start(is_resumed=checkpoint is not None))
        while any(arm.is_live for arm in arms):
            stop_if_asked(should_stop)
            is_validated = False
            for arm in (arm for arm in arms if arm.has_turn(step)):
                turn_started, learn = time.monotonic(), arm.spec.hyperparameters
                if len(arms) > 1:
                    lora.activate(model, modules, arm.name)
                    trunk.start_turn(arm, step)
                    runtime.reset_peak_memory(device)

                if step > arm.step:
                    # Forward and backward: each micro-batch adds its share of the step's mean loss.
                    lora.set_dropout(modules, learn.lora_dropout > 0)
                    lora.set_recompute(modules, learn.gradient_checkpointing)
                    runtime.set_random_state(arm.random_state, device)
                    batches = arm.step_examples(step)
                    labelled = sum(example.target_count for batch in batches for example in batch)
                    loss, correct, tokens = 0.0, 0, 0
                    for batch in scorer.batches(batches, device, share_prefix=learn.allows_shared_prefix):
                        batch_loss, batch_correct = scorer.training_loss(batch, labelled)
                        batch_loss.backward()  # type: ignore[no-untyped-call]
                        loss, tokens = loss + float(batch_loss.detach()), tokens + batch.tokens
                        correct += int(batch_correct)
                        progress.keep_alive()
                    random_state = runtime.random_state(device)

                    # Update the weights, unless loss or gradient is not finite.
                    grad_norm = float(nn.utils.clip_grad_norm_(arm.parameters, learn.max_grad_norm))
                    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                        arm.record_divergence(step, loss, grad_norm)
                        outcomes.fail(arm)
                        continue
                    rate = learning_rate(learn, step, arm.total_steps)
                    for group in arm.optimizer.param_groups:
                        group["lr"] = rate * group["ratio"]
                    arm.optimizer.step()
                    arm.optimizer.zero_grad()
                    # As if it trained alone, so that arms and forecasts compare.
                    seconds = time.monotonic() - turn_started + trunk.saved_seconds
                    peak = runtime.peak_memory_bytes(device)
                    arm.record_step(step, loss, tokens, seconds, random_state)
                    arm.record_peak_memory(peak, arms, device)
                    accuracy = correct / labelled
                    writer.report_metrics(step_metrics(arm, accuracy, rate, grad_norm, tokens, seconds, peak))

                for validated in arm.due_validations():
                    lora.set_dropout(modules, False)
                    lora.set_recompute(modules, False)
                    # Before the first step an adapter changes nothing.
                    with nullcontext() if validated else model.disable_adapter():
                        batches = arm.validation_batches()
                        validation = validate(scorer, batches, device, should_stop, progress.keep_alive)
                    arm.record_validation(validated, validation)
                    writer.report_metrics(Metrics(arm.index, validated, validation.metrics))
                    is_validated |= validated == step

            # A checkpoint comes before the adapters: an attempt that dies while saving only saves again.
            if is_validated or writer.is_due or any(arm.is_finished for arm in arms):
                writer.write(arms)
            progress.report_step(step)
            outcomes.save_finished()
            step += 1
    except Stopped as stop:
        outcomes.stop(stop)
    return outcomes.result()


def learning_rate(learn: Hyperparameters, step: int, total_steps: int) -> float:
    """Return the learning rate of step 1..total_steps: linear warm-up, then the chosen decay.

    With w = ceil(warmup_ratio * total_steps) and p = (step - 1 - w) / (total_steps - w), the factor
    of the peak is step / (w + 1) up to step w, then (1 + cos(pi p)) / 2 (cosine), 1 - p (linear) or 1
    (constant): the schedules of Transformers' `optimization.py`, without their first step at rate 0.
    """
    warmup = math.ceil(learn.warmup_ratio * total_steps)
    if step <= warmup:
        return learn.learning_rate * step / (warmup + 1)
    done = (step - 1 - warmup) / max(1, total_steps - warmup)
    factors = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return learn.learning_rate * factors[learn.lr_scheduler_type]
