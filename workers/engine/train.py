"""Trains arms on one frozen base: `python -m workers.engine train spec.json out/`.

One spec is one arm; a single run is a study with one arm. Arms take turns inside each optimizer step and
share the base, the rows and the process, but neither seed, order, schedule nor fate. A run that was cut off
continues from its checkpoint as if nothing had happened. Knows nothing of queues.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers import faults
from workers.engine import arms as arms_of
from workers.engine import artifacts, checkpoints, disk_room, fingerprint, lora, runtime
from workers.engine.arms import Arm
from workers.engine.data import collate, micro_batches
from workers.engine.loss import Scorer, make_scorer
from workers.engine.model import (
    check_folder,
    check_max_length,
    load_base,
    load_tokenizer,
    tokenizer_record,
    watch,
)
from workers.engine.recompute import set_recompute
from workers.engine.runtime import stop_if_asked
from workers.errors import DiskFull, RunError, Stopped
from workers.events import (
    ArmEnd,
    KeepAlive,
    Message,
    Metrics,
    Progress,
    Report,
    ShouldStop,
    ShouldStopArm,
    never_stop,
    never_stop_arm,
    print_event,
)
from workers.specs import Hyperparameters, TrainSpec

PROGRESS_SECONDS = 0.5
# Whoever watches ends a training that is silent for long; one step alone may take longer than that.
WORKING_SECONDS = 30.0


@dataclass
class Asked:
    """Why to stop. To finish means nothing before the arms stand where an earlier attempt left them."""

    should_stop: ShouldStop
    is_resumed: bool
    stands: bool = False

    def __call__(self) -> str:
        reason = self.should_stop()
        if reason != "finish" or self.stands:
            return reason
        return "" if self.is_resumed else "cancel"


@dataclass
class Saver:
    """Ends arms: saves the adapter where there is one, and tells the outcome."""

    model: Any
    tokenizer: Any
    out_dir: Path
    report: Report
    keeper: checkpoints.Keeper
    ends: list[ArmEnd] = field(default_factory=list)

    def save(self, arm: Arm, outcome: str) -> None:
        """Save the arm's present weights; when they are no adapter to publish, this arm alone fails."""
        keeper = self.keeper
        summary = arms_of.summary_of(arm, keeper.dtype, keeper.device)
        summary["wall_seconds"] = time.monotonic() - keeper.began
        summary |= tokenizer_record(arm.spec.base, self.tokenizer)
        is_early = outcome == "stopped_early"
        if is_early:
            summary["validation_loss"] = arm.kept_loss
        try:
            with arm.best_weights() if is_early else nullcontext(arm.step) as step:
                summary["published_step"] = step
                artifact = artifacts.save_arm(
                    self.model, self.tokenizer, arm.spec, self.out_dir, arm.index, summary
                )
        except DiskFull:
            raise
        except RunError as error:
            arm.error = error
            self.fail(arm)
            return
        faults.point("save.before_report")
        self.report(artifact)
        faults.point("save.before_end")
        summary["adapter_bytes"] = artifacts.adapter_bytes(self.out_dir, artifact)
        # In run.json they stand beside the result.
        summary["versions"] = runtime.versions()
        self.ends.append(arms_of.end(arm, outcome, self.report, summary=summary))

    def fail(self, arm: Arm) -> None:
        """Tell that an arm is lost."""
        self.ends.append(arms_of.end(arm, "failed", self.report, error=arm.error))

    def stop(self, arms: Sequence[Arm], reason: str) -> None:
        """End every live arm for a stop after which nobody continues."""
        for arm in arms:
            if arm.is_live and reason == "finish" and arm.step:
                self.save(arm, "succeeded" if arm.is_done else "stopped_early")
            elif arm.is_live:
                self.ends.append(arms_of.end(arm, "cancelled", self.report))


@dataclass(frozen=True)
class Loaded:
    """What a training reads before its first step."""

    tokenizer: Any
    arms: list[Arm]
    base: Any
    frozen: int  # numbers of the base model
    dtype: torch.dtype
    device: torch.device


def train(
    specs: Sequence[TrainSpec],
    out_dir: Path,
    *,
    report: Report = print_event,
    should_stop: ShouldStop = never_stop,
    should_stop_arm: ShouldStopArm = never_stop_arm,
    resume_from: Path | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_seconds: float = checkpoints.SECONDS,
    attempt: int = 0,
    ended: Collection[int] = (),
    disk_reserve: int = disk_room.RESERVE,
) -> list[ArmEnd]:
    """Train every spec and write `out_dir/arm-<i>/adapter`. Raises only when no arm came through.

    `resume_from` is one checkpoint; new ones go below `checkpoint_dir`, none without it, as long as `attempt`
    is the latest that has taken it. `ended`: arms that have their outcome from an earlier attempt and are
    neither trained nor told of again.
    """
    kept = checkpoints.load(resume_from) if resume_from else None
    arms_of.check_shared(specs)
    disk_room.check_room(checkpoint_dir or out_dir, specs, disk_reserve)
    started = time.monotonic()
    asked = Asked(should_stop, is_resumed=kept is not None)
    loaded = load(specs, kept, ended, report, asked)
    arms, device = loaded.arms, loaded.device
    origin = fingerprint.origin(specs, arms, loaded.base)
    keeper = checkpoints.Keeper(
        checkpoint_dir, checkpoint_seconds, report, origin, loaded.dtype, device, started, attempt
    )
    model, scorer = attach(specs, loaded)
    for arm in arms:
        if arm.is_live:
            report(Message(arms_of.arithmetic(arm, loaded.frozen, loaded.dtype)))
    if kept:
        checkpoints.restore(kept, keeper, arms)
    asked.stands = True

    saver = Saver(model, loaded.tokenizer, out_dir, report, keeper)
    for arm in arms:
        if arm.error and not arm.is_over:
            saver.fail(arm)
    loop = Loop(arms, model, scorer, device, asked, should_stop_arm, report, keeper, saver)
    if kept:
        report(Message(f"Continues from step {loop.begin:,}."))
    try:
        loop.run()
    except Stopped as stop:
        if stop.reason != "cancel":
            keeper.write_last(arms)
        if stop.reason in ("drain", "park"):
            raise
        saver.stop(arms, stop.reason)
        if stop.reason == "cancel":
            raise
        if not ended and not any(end.outcome in ("succeeded", "stopped_early") for end in saver.ends):
            raise Stopped("cancel") from stop

    failed = [arm.error for arm in arms if arm.error is not None]
    if len(failed) == len(arms):
        raise failed[0]
    return sorted(saver.ends, key=lambda end: end.arm)


def load(
    specs: Sequence[TrainSpec],
    kept: checkpoints.Kept | None,
    ended: Collection[int],
    report: Report,
    asked: Asked,
) -> Loaded:
    """Tokenizer and rows before weights, so that bad data is told early."""
    first = specs[0]
    check_folder(first.base)
    device = runtime.pick_device()
    dtype = kept.dtype if kept else runtime.pick_dtype(first.dtype, device)
    torch.set_num_threads(runtime.thread_count())
    torch.manual_seed(first.hyperparameters.seed)
    report(Progress("tokenizing"))
    tokenizer = load_tokenizer(first.base)
    arms = arms_of.prepare(specs, tokenizer, report, asked)
    for index in ended:
        arms[index].is_over = True
    stop_if_asked(asked)
    report(Progress("loading"))
    lora.rehearse(specs)
    base = load_base(first.base, dtype, device, in_4bit=first.hyperparameters.load_in_4bit)
    for spec in specs:
        check_max_length(base, spec.base, spec.hyperparameters.max_length)
    watch(base, lambda: stop_if_asked(asked))
    return Loaded(tokenizer, arms, base, base.num_parameters(), dtype, device)


def attach(specs: Sequence[TrainSpec], loaded: Loaded) -> tuple[Any, Scorer]:
    """PEFT's modules, counted; one AdamW per arm on its adapter weights."""
    model = lora.attach(loaded.base, specs)
    for arm in loaded.arms:
        lora.activate(model, arm.name)
        arm.parameters = lora.arm_parameters(model, arm.name)
        learn = arm.spec.hyperparameters
        groups = lora.optimizer_groups(model, arm.name, learn)
        arm.optimizer = torch.optim.AdamW(groups, lr=learn.learning_rate, weight_decay=learn.weight_decay)
        torch.manual_seed(learn.seed)
        arm.random_state = runtime.random_state(loaded.device)
    first_rows = list(loaded.arms[0].rows.values())[:2]
    return model, make_scorer(model, loaded.base, collate(first_rows, loaded.device))


@dataclass
class Loop:
    """The steps of all arms in turn, from where they stand to their ends."""

    arms: Sequence[Arm]
    model: Any
    scorer: Scorer
    device: torch.device
    asked: Asked
    should_stop_arm: ShouldStopArm
    report: Report
    keeper: checkpoints.Keeper
    saver: Saver

    def __post_init__(self) -> None:
        unfinished = [arm.step for arm in self.arms if arm.is_live and not arm.is_done]
        self.begin = min(unfinished, default=self.steps)
        self.started = self.told = self.worked = time.monotonic()

    @property
    def steps(self) -> int:
        """The last step of the arms that have not ended; 0 without one."""
        return max((arm.total for arm in self.arms if arm.is_live), default=0)

    def run(self) -> None:
        """Every step of every arm; raises Stopped when somebody asked for it."""
        self.report(Progress("training", self.begin, self.steps))
        step = self.begin
        while step <= self.steps:
            stop_if_asked(self.asked)
            validated = False
            for arm in self.arms:
                self.stop_alone(arm)
                if arm.is_live and arm.step <= step <= arm.total:
                    validated = self.turn(arm, step) or validated
            done = [arm for arm in self.arms if arm.is_done]
            # Before an adapter is saved its weights are safe: whoever dies now only saves again.
            if validated or done or self.keeper.is_due:
                self.keeper.write(self.arms)
            self.tell(step)
            if done and not any(arm.is_live and not arm.is_done for arm in self.arms):
                self.report(Progress("saving"))
            for arm in done:
                self.saver.save(arm, "succeeded")
            step += 1

    def stop_alone(self, arm: Arm) -> None:
        """End this arm before its next step where somebody asked for it; the others never notice."""
        reason = self.should_stop_arm(arm.index)
        if reason and arm.is_live:
            # Who dies while saving only saves again.
            if reason == "finish":
                self.keeper.write_last(self.arms)
            self.report(Message(f"{arm.spec.name} was stopped after step {arm.step:,}, as asked."))
            self.saver.stop([arm], reason)

    def turn(self, arm: Arm, step: int) -> bool:
        """One arm's part of a step; whether its held-out loss was measured.

        A resumed arm may have the step itself behind it already, and only its held-out loss to come.
        """
        began = time.monotonic()
        if len(self.arms) > 1:
            lora.activate(self.model, arm.name)
            runtime.forget_peak_memory(self.device)
        if step > arm.step and not self.learn(arm, step, began):
            return False
        if not arm.is_due(step):
            return False
        lora.set_dropout(self.model, False)
        set_recompute(self.model, False)
        held_out = validation_loss(self.scorer, arm, self.device, self.work_on)
        arm.note_validation(held_out)
        self.keeper.tell(Metrics(arm.index, step, {"validation/loss": held_out}))
        faults.point("train.after_validation")
        return True

    def learn(self, arm: Arm, step: int, began: float) -> bool:
        """One optimizer step; False where its numbers were none, which ends this arm alone."""
        learn = arm.spec.hyperparameters
        loss, tokens = self.add_gradients(arm, step)
        drawn = runtime.random_state(self.device)
        norm = float(nn.utils.clip_grad_norm_(arm.parameters, learn.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            arm.step = step
            arm.error = arms_of.diverged(arm, step, loss, norm)
            self.saver.fail(arm)
            arm.optimizer.zero_grad()
            return False
        rate = learning_rate(learn, step, arm.total)
        for group in arm.optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        arm.optimizer.step()
        arm.optimizer.zero_grad()
        seconds = time.monotonic() - began
        arm.note_step(step, loss, tokens, seconds, drawn)
        peak = runtime.peak_memory_bytes(self.device)
        if len(self.arms) > 1:
            arm.note_peak(peak, self.arms, self.device)
        values = {
            "train/loss": loss,
            "train/learning_rate": rate,
            "train/grad_norm": norm,
            "train/tokens_per_second": tokens / max(seconds, 1e-9),
            "system/memory_bytes": float(peak),
        }
        self.keeper.tell(Metrics(arm.index, step, values))
        faults.point("train.after_step")
        return True

    def add_gradients(self, arm: Arm, step: int) -> tuple[float, int]:
        """(loss, tokens) of a step: each micro-batch adds its share of the mean over the step's labels."""
        batches = list(arm.step_examples(step))
        labelled = sum(example.labelled for batch in batches for example in batch)
        drops = arm.spec.hyperparameters.lora_dropout > 0
        again = arm.spec.hyperparameters.gradient_checkpointing
        # Each row draws its own dropout, and a layer that is computed twice fills no cache.
        shares = self.scorer.shares and not drops and not again
        lora.set_dropout(self.model, drops)
        set_recompute(self.model, again)
        runtime.set_random_state(arm.random_state, self.device)
        loss_sum, tokens = 0.0, 0
        for examples in batches:
            batch = collate(examples, self.device, share=shares)
            loss: Any = self.scorer.training_loss(batch, labelled)
            loss.backward()
            loss_sum += float(loss.detach())
            tokens += batch.tokens
            self.say_it_works()
        return loss_sum, tokens

    def say_it_works(self) -> None:
        """A sign of life within a step or a validation, once in a while."""
        now = time.monotonic()
        if now - self.worked >= WORKING_SECONDS:
            self.worked = now
            self.report(KeepAlive())

    def work_on(self) -> str:
        """Asked between two batches of held-out rows."""
        self.say_it_works()
        return self.asked()

    def tell(self, step: int) -> None:
        """How far it is, and about how many seconds are left."""
        now, steps = time.monotonic(), self.steps
        if self.begin < step <= steps and (now - self.told >= PROGRESS_SECONDS or step == steps):
            self.told = now
            left = (now - self.started) / (step - self.begin) * (steps - step)
            self.report(Progress("training", step, steps, round(left, 1)))


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
