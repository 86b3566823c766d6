"""Checkpoints of a run: one folder for all live arms, complete or absent, safetensors and JSON only.

A folder is written under a temporary name and synced; its manifest with every file's SHA-256 comes last; one
rename gives it its number. It also holds the best weights of each arm, so one folder is all that a run needs
to continue or to finish. Knows nothing of jobs: the caller names the folder and the attempt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from workers.contract import checkpoint_ownership
from workers.contract.checkpoint_ownership import MANIFEST, MISSING
from workers.contract.errors import CheckpointMismatch, DiskFull, RunError, disk_error, is_full
from workers.contract.events import Checkpoint, Message, Metrics, Report
from workers.engine import runtime
from workers.engine.training import fingerprint
from workers.engine.training.artifacts import file_sha256, sync, to_json

if TYPE_CHECKING:
    from workers.engine.training.arms import Arm

FORMAT = 4
SECONDS = 180.0
KEEP = 2
# The next attempt reports again what the supervisor may not have stored when it died: the metrics of as long
# as a supervisor endures without its database, and of some minutes more. Both are upper bounds.
REPLAY_SECONDS = 20 * 60.0
REPLAY_POINTS = 50_000
STATE = "state.json"
WRITING, REMOVED, DAMAGED = ".writing-", ".gone-", "damaged-"
# Adam's moments are stored beside each parameter; the schedule's and the data's position follow from `step`.
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
COUNTERS = (
    "step",
    "validated_step",
    "tokens",
    "seconds",
    "peak_memory_bytes",
    "train_loss",
    "validation_loss",
    "best_validation_loss",
    "best_validation_step",
    "best_weights_step",
    "best_weights_loss",
    "lowest_row_losses",
)


class CheckpointDamaged(RunError):
    """A folder that is no complete checkpoint."""

    code = "checkpoint_damaged"

    def __init__(self) -> None:
        super().__init__(
            "This checkpoint is damaged, so the run cannot continue from it. Choose another one."
        )


class CheckpointUnreadable(RunError):
    """A disk that does not return a checkpoint, which may be intact."""

    code = "checkpoint_unreadable"

    def __init__(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        super().__init__(f"The checkpoints of this run could not be read: {reason}. They are unchanged.")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint whose hashes have been verified."""

    folder: Path
    origin: dict[str, str]
    state: dict[str, Any]

    @property
    def dtype(self) -> str:
        """Return the base model's number format: `auto` might choose another one in this attempt."""
        return str(self.state["dtype"])


@dataclass
class CheckpointWriter:
    """Writes a run's checkpoints and knows when the next one is due. Without a folder it writes none."""

    folder: Path | None
    every_seconds: float
    report: Report
    origin: dict[str, str]
    dtype: torch.dtype
    device: torch.device
    run_started: float  # on this process's monotonic clock, the time of earlier attempts subtracted
    attempt: int = 0
    last_write: float = field(default_factory=time.monotonic)
    recent_metrics: deque[tuple[float, Metrics]] = field(default_factory=lambda: deque(maxlen=REPLAY_POINTS))

    def report_metrics(self, metrics: Metrics) -> None:
        """Report values, and remember them for the next checkpoints."""
        now = time.monotonic()
        while self.recent_metrics and now - self.recent_metrics[0][0] > REPLAY_SECONDS:
            self.recent_metrics.popleft()
        self.recent_metrics.append((now, metrics))
        self.report(metrics)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.last_write >= self.every_seconds

    def write(self, arms: Sequence[Arm]) -> None:
        """Write what the arms need to continue, with one retry.

        Raises DiskFull, and TakenOver if a later attempt has taken ownership. After any other error the
        training goes on.
        """
        live_steps = [arm.step for arm in arms if arm.error is None]
        if self.folder is None or not any(live_steps):
            return
        for is_retry in (False, True):
            try:
                self._write(self.folder, arms, max(live_steps))
                break
            except (OSError, SafetensorError) as error:
                if not is_retry:
                    if is_full(error):  # the newest is complete, and the other one's room is needed
                        self._remove_all_but(self.folder, 1)
                elif full := disk_error(error):
                    raise full from error
                else:
                    self._report_failure(max(live_steps), error)
        self.last_write = time.monotonic()

    def write_last(self, arms: Sequence[Arm]) -> None:
        """Write before a stop; if the disk is full, the next attempt continues from the checkpoint before."""
        try:
            self.write(arms)
        except DiskFull as error:
            self.report(
                Message(f"No checkpoint could be written before the stop. {error.message}", "warning")
            )

    def _report_failure(self, step: int, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or type(error).__name__
        self.report(
            Message(
                f"The checkpoint of step {step:,} could not be written: {reason}. The training goes on; "
                "if it is interrupted now, it continues from the checkpoint before.",
                "warning",
            )
        )

    def _write(self, folder: Path, arms: Sequence[Arm], step: int) -> None:
        checkpoint_ownership.check_ownership(folder, self.attempt)
        temporary = folder / f"{WRITING}{self.attempt}-{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self._fill(temporary, arms, step)
            checkpoint_ownership.check_ownership(folder, self.attempt)
            numbers = [int(path.name) for path in checkpoint_ownership.all_checkpoints(folder)]
            final = folder / f"{max(numbers, default=0) + 1:06d}"
            temporary.rename(final)
            sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove_all_but(folder, KEEP)
        self.report(Checkpoint(step, final.name))

    def _fill(self, folder: Path, arms: Sequence[Arm], step: int) -> None:
        state = {
            "step": step,
            "dtype": runtime.dtype_name(self.dtype),
            "device": self.device.type,
            "wall_seconds": time.monotonic() - self.run_started,
            "recent_metrics": [[item.arm, item.step, item.values] for _time, item in self.recent_metrics],
            "arms": [_arm_state(arm) for arm in arms],
        }
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        for arm in arms:
            if arm.error is None:
                save_file(_tensors(arm), folder / f"{arm.name}.safetensors")
        names = sorted(path.name for path in folder.iterdir())
        manifest = {
            "format": FORMAT,
            "step": step,
            "attempt": self.attempt,
            "origin": self.origin,
            "files": {name: file_sha256(folder / name) for name in names},
        }
        for name in names:
            sync(folder / name)
        (folder / MANIFEST).write_text(to_json(manifest | {"seal": _seal(manifest)}), encoding="utf-8")
        sync(folder / MANIFEST)
        sync(folder)

    def _remove_all_but(self, folder: Path, count: int) -> None:
        """Rename before removing: a folder that is half removed must not look like a damaged checkpoint."""
        checkpoint_ownership.check_ownership(folder, self.attempt)
        # Those that an earlier attempt wrote after it had lost the folder are removed too.
        keep = checkpoint_ownership.valid_checkpoints(folder)[:count]
        for path in checkpoint_ownership.all_checkpoints(folder):
            if path in keep:
                continue
            removed = path.with_name(f"{REMOVED}{path.name}")
            with contextlib.suppress(OSError):
                path.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)


def take_ownership(folder: Path, attempt: int) -> int:
    """Take the folder for this attempt, or for the next one if `attempt` is 0; return the attempt's number.

    Raises TakenOver if a later attempt owns it, and CheckpointUnreadable.
    """
    try:
        return checkpoint_ownership.take_ownership(folder, attempt)
    except OSError as error:
        raise CheckpointUnreadable(error) from error


def find_newest(folder: Path, report: Report) -> Path | None:
    """Return the newest intact checkpoint, or None; put damaged ones aside and report it.

    Only the attempt that owns the folder may call it: unfinished files of other attempts are removed.
    """
    for prefix in (WRITING, REMOVED):
        for unfinished in folder.glob(f"{prefix}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
    try:
        candidates = checkpoint_ownership.valid_checkpoints(folder)
    except OSError as error:
        raise CheckpointUnreadable(error) from error
    for path in candidates:
        try:
            load(path)
        except CheckpointDamaged:
            report(Message("The newest checkpoint is damaged, so the one before it is tried.", "warning"))
            _put_aside(path)
        else:
            return path
    if candidates:
        report(Message("No checkpoint is intact, so the run starts again from step 0.", "warning"))
    return None


def _put_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that no attempt continues from it; only the latest one is kept."""
    for earlier in path.parent.glob(f"{DAMAGED}*"):
        shutil.rmtree(earlier, ignore_errors=True)
    damaged = path.with_name(f"{DAMAGED}{path.name}")
    with contextlib.suppress(OSError):
        path.rename(damaged)
        os.utime(damaged)  # its retention period begins now, not when it was written


def load(folder: Path) -> LoadedCheckpoint:
    """Read one checkpoint and verify every file against its manifest.

    Raises CheckpointDamaged, or CheckpointUnreadable if the disk fails: an I/O error proves no damage.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, str] = manifest["files"]
        seal = manifest.pop("seal")
        # A name with a folder in it would lead out of the checkpoint.
        has_plain_names = all(Path(name).name == name for name in files)
        is_sealed = has_plain_names and manifest["format"] == FORMAT and seal == _seal(manifest)
        if not is_sealed or any(file_sha256(folder / name) != digest for name, digest in files.items()):
            raise CheckpointDamaged
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return LoadedCheckpoint(folder, dict(manifest["origin"]), dict(state))
    except (*MISSING, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamaged from error
    except OSError as error:
        raise CheckpointUnreadable(error) from error


def restore(checkpoint: LoadedCheckpoint, writer: CheckpointWriter, arms: Sequence[Arm]) -> None:
    """Put the arms where the checkpoint left them and report its recent metrics again.

    Metrics of arms that have ended are not reported again. Raises CheckpointMismatch for another run's
    checkpoint.
    """
    if different := fingerprint.differences(writer.origin, checkpoint.origin):
        raise CheckpointMismatch(
            f"The checkpoint was made with {' and '.join(different)} than this run has, so "
            "it cannot be continued. Start a new run, or put back what was changed."
        )
    same_device = checkpoint.state["device"] == writer.device.type
    for arm, values in zip(arms, checkpoint.state["arms"], strict=True):
        for name in COUNTERS:
            setattr(arm, name, values[name])
        if values["error"] is not None:
            arm.error = RunError(values["error"]["message"], code=values["error"]["code"])
        else:
            _restore_tensors(arm, checkpoint.folder, with_random=same_device)
    writer.run_started -= checkpoint.state["wall_seconds"]
    ended = {arm.index for arm in arms if arm.has_ended}
    for arm_index, step, values in checkpoint.state["recent_metrics"]:
        if arm_index not in ended:
            writer.report_metrics(Metrics(arm_index, step, values))


def _restore_tensors(arm: Arm, folder: Path, *, with_random: bool) -> None:
    try:
        tensors = load_file(folder / f"{arm.name}.safetensors")
    except (OSError, SafetensorError) as error:  # it was intact when its hash was verified
        raise CheckpointUnreadable(error) from error
    if with_random:  # the generators of two kinds of device do not understand each other's state
        arm.random_state = tensors["random_state"]
    with torch.no_grad():
        for number, parameter in enumerate(arm.parameters):
            parameter.copy_(tensors[f"{number}.weight"])
            # Fused AdamW reads its moments and its count of steps on the weight's device.
            moments = {
                name: tensors[key].to(parameter.device)
                for name in MOMENTS
                if (key := f"{number}.{name}") in tensors
            }
            if moments:
                arm.optimizer.state[parameter] = moments
    if arm.best_weights_step == arm.step:
        arm.best_weights = arm.copied_weights()
    elif arm.best_weights_step:
        arm.best_weights = [tensors[f"{number}.best"] for number in range(len(arm.parameters))]


def _tensors(arm: Arm) -> dict[str, torch.Tensor]:
    tensors = {"random_state": arm.random_state}
    for number, parameter in enumerate(arm.parameters):
        tensors[f"{number}.weight"] = parameter.detach().contiguous()
        moments = arm.optimizer.state.get(parameter, {})
        tensors |= {f"{number}.{name}": moments[name].contiguous() for name in MOMENTS if name in moments}
    if arm.best_weights_step != arm.step:  # else they are the weights above
        tensors |= {f"{number}.best": weight for number, weight in enumerate(arm.best_weights)}
    return tensors


def _arm_state(arm: Arm) -> dict[str, Any]:
    error = None if arm.error is None else {"code": arm.error.code, "message": arm.error.message}
    return {name: getattr(arm, name) for name in COUNTERS} | {"error": error}


def _seal(manifest: dict[str, Any]) -> str:
    """Return a hash of the manifest itself: a flipped bit there must not read as another run's checkpoint."""
    return hashlib.sha256(to_json(manifest).encode()).hexdigest()
