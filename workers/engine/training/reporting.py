"""Reports how far a training is, that it still works, and how each arm ended.

Knows nothing of the loop. Adapters are written by `artifacts`, checkpoints by `checkpoints`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from workers.contract.errors import DiskFull, RunError
from workers.contract.events import ArmEnd, KeepAlive, Progress, Report
from workers.engine.base_models.model import tokenizer_record
from workers.engine.training import artifacts, runtime
from workers.engine.training.arms import Arm, dtype_name
from workers.engine.training.checkpoints import CheckpointWriter

PROGRESS_SECONDS = 0.5
# The supervisor ends a training that is silent for long, and one step alone may take longer than that.
KEEP_ALIVE_SECONDS = 30.0


@dataclass
class ProgressReporter:
    """Steps done, and about how many seconds are left."""

    arms: Sequence[Arm]
    report: Report
    first_step: int = field(init=False)

    def __post_init__(self) -> None:
        unfinished = [arm.step for arm in self.arms if arm.is_live and not arm.is_finished]
        self.first_step = min(unfinished, default=self.last_step)

    @property
    def last_step(self) -> int:
        """The last step of the arms that have not ended; 0 without one."""
        return max((arm.total_steps for arm in self.arms if arm.is_live), default=0)

    def start(self) -> None:
        self.started = self.reported = self.alive = time.monotonic()
        self.report(Progress("training", self.first_step, self.last_step))

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

    model: Any
    tokenizer: Any
    out_dir: Path
    report: Report
    writer: CheckpointWriter
    ends: list[ArmEnd] = field(default_factory=list)

    @property
    def has_adapter(self) -> bool:
        return any(end.outcome in ("succeeded", "stopped_early") for end in self.ends)

    def save(self, arm: Arm, outcome: str) -> None:
        """Save the arm's adapter: its present weights, or its best ones if it is `stopped_early`.

        An adapter that must not be published fails this arm alone. Raises DiskFull.
        """
        is_early = outcome == "stopped_early"
        summary = self._summary(arm)
        if is_early:
            summary["validation_loss"] = arm.best_weights_loss
        try:
            with arm.with_best_weights() if is_early else nullcontext(arm.step) as step:
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
        summary["adapter_bytes"] = artifacts.adapter_bytes(self.out_dir, artifact)
        summary["versions"] = runtime.versions()  # run.json has them beside the result
        self._end(arm, outcome, summary)

    def fail(self, arm: Arm) -> None:
        """Report that the arm failed with its error."""
        self._end(arm, "failed", {})

    def stop(self, arms: Sequence[Arm], reason: str) -> None:
        """End every live arm of a job that will not continue: `finish` saves its best weights."""
        for arm in arms:
            if arm.is_live and reason == "finish" and arm.step:
                self.save(arm, "succeeded" if arm.is_finished else "stopped_early")
            elif arm.is_live:
                self._end(arm, "cancelled", {})

    def _end(self, arm: Arm, outcome: str, summary: dict[str, Any]) -> None:
        arm.has_ended = True
        code, message = (arm.error.code, arm.error.message) if arm.error else ("", "")
        end = ArmEnd(arm.index, outcome, arm.step, code, message, summary)
        self.report(end)
        self.ends.append(end)

    def _summary(self, arm: Arm) -> dict[str, Any]:
        """Final metrics and costs: losses in nats, times in seconds, memory in bytes."""
        device: torch.device = self.writer.device
        return {
            "train_loss": arm.train_loss,
            "validation_loss": arm.validation_loss,
            "best_validation_loss": arm.best_validation_loss,
            "best_validation_step": arm.best_validation_step,
            "steps": arm.step,
            "published_step": arm.step,
            "seconds": arm.seconds,
            "wall_seconds": time.monotonic() - self.writer.run_started,
            "tokens": arm.tokens,
            "tokens_per_second": arm.tokens / max(arm.seconds, 1e-9),
            "peak_memory_bytes": arm.peak_memory_bytes or runtime.peak_memory_bytes(device),
            "trainable_parameters": sum(parameter.numel() for parameter in arm.parameters),
            "dtype": dtype_name(self.writer.dtype),
            "device": runtime.device_name(device),
            "threads": runtime.thread_count(),
            **tokenizer_record(arm.spec.base, self.tokenizer),
        }
