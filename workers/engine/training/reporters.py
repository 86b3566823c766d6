"""Reports what a training will do, how far it is, that it still works, and how each arm ended.

Knows nothing of the loop. Adapters are written by `artifacts`, checkpoints by `checkpoints`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from workers.contract.errors import DiskFull, RunError, Stopped
from workers.contract.events import ArmEnd, KeepAlive, Message, Metrics, Progress, Report
from workers.engine import runtime
from workers.engine.base_models.model import storage_description, tokenizer_record
from workers.engine.training import artifacts
from workers.engine.training.arms import Arm
from workers.engine.training.checkpoints import CheckpointWriter

PROGRESS_SECONDS = 0.5
# The supervisor ends a training that is silent for long, and one step alone may take longer than that.
KEEP_ALIVE_SECONDS = 30.0


@dataclass
class ProgressReporter:
    """Steps done, and about how many seconds are left."""

    arms: Sequence[Arm]
    report: Report

    @property
    def last_step(self) -> int:
        """Return the last step of the arms that have not ended; 0 without one."""
        return max((arm.total_steps for arm in self.arms if arm.is_live), default=0)

    def describe_arms(self, frozen: int, dtype: torch.dtype) -> None:
        """Report the arithmetic of every arm; `frozen` is the number of the base model's parameters."""
        for arm in self.arms:
            if arm.is_live:
                self.report(Message(_describe(arm, frozen, dtype)))

    def start(self, *, is_resumed: bool) -> int:
        """Return the step to begin with, which an unfinished arm has completed; it is 0 for a new run."""
        self.started = self.reported = self.alive = time.monotonic()
        unfinished = [arm.step for arm in self.arms if arm.is_live and not arm.is_finished]
        self.first_step = min(unfinished, default=self.last_step)
        if is_resumed:
            self.report(Message(f"Continues from step {self.first_step:,}."))
        self.report(Progress("training", self.first_step, self.last_step))
        return self.first_step

    def keep_alive(self) -> None:
        """Report from within a step or a validation, at most every `KEEP_ALIVE_SECONDS`."""
        now = time.monotonic()
        if now - self.alive >= KEEP_ALIVE_SECONDS:
            self.alive = now
            self.report(KeepAlive())

    def report_step(self, step: int) -> None:
        """Report a completed step, at most every `PROGRESS_SECONDS`, and when only saving is left."""
        now, last = time.monotonic(), self.last_step
        is_due = now - self.reported >= PROGRESS_SECONDS or step == last
        if self.first_step < step <= last and is_due:
            self.reported = now
            left = (now - self.started) / (step - self.first_step) * (last - step)
            self.report(Progress("training", step, last, round(left, 1)))
        live = [arm for arm in self.arms if arm.is_live]
        if live and all(arm.is_finished for arm in live):
            self.report(Progress("saving"))


@dataclass
class OutcomeReporter:
    """Ends arms: saves the adapter where there is one, and reports the outcome."""

    arms: Sequence[Arm]
    model: Any
    tokenizer: Any
    out_dir: Path
    report: Report
    writer: CheckpointWriter
    ends: list[ArmEnd] = field(default_factory=list)

    def save(self, arm: Arm, outcome: str) -> None:
        """Save the arm's adapter: the best weights if any are known, else the present ones.

        An adapter that must not be published fails this arm alone. Raises DiskFull.
        """
        summary = self._summary(arm)
        if arm.best_weights_step:
            summary["validation_loss"] = arm.best_weights_loss
        try:
            with arm.with_best_weights() as step:
                summary["published_step"] = step
                artifact = artifacts.save_adapter(
                    self.model, self.tokenizer, arm.spec, self.out_dir, arm.index, summary
                )
        except DiskFull:
            raise
        except RunError as error:
            arm.error = error
            self.fail(arm)
            return
        self.report(artifact)
        weights = self.out_dir / artifact.path / artifacts.WEIGHTS
        summary["adapter_bytes"] = weights.stat().st_size
        summary["versions"] = runtime.versions()  # run.json has them beside the result
        self._end(arm, outcome, summary)

    def save_finished(self) -> None:
        """Save the adapter of every arm that is trained and validated to its end."""
        for arm in self.arms:
            if arm.is_finished:
                self.save(arm, "succeeded")

    def fail(self, arm: Arm) -> None:
        """Report that the arm failed with its error."""
        self._end(arm, "failed", {})

    def report_restored_failures(self) -> None:
        """Report the arms that failed in an earlier attempt which died before it reported them."""
        for arm in self.arms:
            if arm.error and not arm.has_ended:
                self.fail(arm)

    def stop(self, stop: Stopped) -> None:
        """End the training after a stop: `finish` saves the best weights of every live arm.

        Raises Stopped if the job goes on later, or if neither this nor an earlier attempt has an adapter.
        """
        if stop.reason != "cancel":
            self.writer.write_last(self.arms)
        if stop.reason in ("drain", "park"):
            raise stop
        for arm in self.arms:
            if arm.is_live and stop.reason == "finish" and arm.step:
                self.save(arm, "succeeded" if arm.is_finished else "stopped_early")
            elif arm.is_live:
                self._end(arm, "cancelled", {})
        has_earlier_ends = len(self.ends) < len(self.arms)
        has_adapter = any(end.outcome in ("succeeded", "stopped_early") for end in self.ends)
        if stop.reason == "cancel" or not (has_earlier_ends or has_adapter):
            raise Stopped("cancel") from stop

    def result(self) -> list[ArmEnd]:
        """Return the ends in the order of the arms; raise the first error if every arm has failed."""
        failed = [arm.error for arm in self.arms if arm.error is not None]
        if len(failed) == len(self.arms):
            raise failed[0]
        return sorted(self.ends, key=lambda end: end.arm)

    def _end(self, arm: Arm, outcome: str, summary: dict[str, Any]) -> None:
        arm.has_ended = True
        code, message = (arm.error.code, arm.error.message) if arm.error else ("", "")
        end = ArmEnd(arm.index, outcome, arm.step, code, message, summary)
        self.report(end)
        self.ends.append(end)

    def _summary(self, arm: Arm) -> dict[str, Any]:
        """Return final metrics and costs: losses in nats, times in seconds, memory in bytes."""
        device: torch.device = self.writer.device
        return {
            "train_loss": arm.train_loss,
            "validation_loss": arm.validation_loss,
            "best_validation_loss": arm.best_validation_loss,
            "best_validation_step": arm.best_validation_step,
            "validation_rows": len(arm.validation_examples),
            "steps": arm.step,
            "published_step": arm.step,
            "seconds": arm.seconds,
            "wall_seconds": time.monotonic() - self.writer.run_started,
            "tokens": arm.tokens,
            "tokens_per_second": arm.tokens / max(arm.seconds, 1e-9),
            "peak_memory_bytes": arm.peak_memory_bytes or runtime.peak_memory_bytes(device),
            "trainable_parameters": sum(parameter.numel() for parameter in arm.parameters),
            "dtype": runtime.dtype_name(self.writer.dtype),
            "device": runtime.device_name(device),
            "threads": runtime.thread_count(),
            **tokenizer_record(arm.spec.base, self.tokenizer),
        }


def step_metrics(
    arm: Arm, accuracy: float, rate: float, grad_norm: float, tokens: int, seconds: float, peak: int
) -> Metrics:
    """Return the values of the arm's present step; `peak` is in bytes."""
    values = {
        "train/loss": arm.train_loss,
        "train/token_accuracy": accuracy,
        "train/learning_rate": rate,
        "train/grad_norm": grad_norm,
        "train/tokens_per_second": tokens / max(seconds, 1e-9),
        "system/memory_bytes": float(peak),
    }
    return Metrics(arm.index, arm.step, values)


def _describe(arm: Arm, frozen: int, dtype: torch.dtype) -> str:
    """Return the run's arithmetic in words; `frozen` is the number of the base model's parameters."""
    learn = arm.spec.hyperparameters
    epochs = arm.total_steps / math.ceil(len(arm.positions) / learn.rows_per_step)
    tokens = sum(len(example.ids) for example in arm.examples.values())
    labelled = sum(example.target_count for example in arm.examples.values())
    trainable = sum(parameter.numel() for parameter in arm.parameters)
    stored = storage_description(runtime.dtype_name(dtype), in_4bit=learn.load_in_4bit)
    rows = learn.rows_per_step
    per_step = f"{rows:,} row" if rows == 1 else f"{rows:,} rows"
    times = "once" if len(arm.validated_after) == 1 else f"{len(arm.validated_after)} times"
    batch = f"{learn.per_device_train_batch_size} x {learn.gradient_accumulation_steps}"
    sentences = (
        f"{arm.spec.name}: {len(arm.positions):,} training rows.",
        f"{arm.total_steps:,} steps of {per_step} ({batch}), {epochs:,.2f} epochs.",
        f"The {len(arm.examples):,} rows read have {tokens:,} tokens, {labelled:,} of them in answers.",
        f"Validated on {len(arm.validation_examples):,} rows, {times}.",
        f"{trainable:,} trainable parameters, {trainable / frozen:.2%} of the base model's {frozen:,}.",
        f"The base model is stored {stored}.",
    )
    return " ".join(sentences)
