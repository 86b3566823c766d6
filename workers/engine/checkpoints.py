"""Checkpoints of a run: one folder for all live arms, whole or not there, safetensors and JSON only.

A folder is written aside and synced, its manifest with every file's SHA-256 comes last, one rename gives it
its name. Each holds the best weights of each arm too, so whoever has one folder has all there is to keep.
Knows nothing of jobs: whoever starts the engine says where checkpoints lie, and which attempt writes there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
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

from workers import faults, handover
from workers.engine import fingerprint, lora
from workers.engine.artifacts import file_sha256, sync
from workers.errors import CheckpointMismatch, DiskFull, RunError, disk_error, is_full
from workers.events import Checkpoint, Message, Metrics, Report
from workers.handover import MANIFEST, MISSING

if TYPE_CHECKING:
    from workers.engine.arms import Arm

FORMAT = 2
SECONDS = 180.0
KEPT = 2
# Metrics that the parent may not have stored yet when everything died are said again by whoever continues: of
# as long as a parent bears without its database, and some minutes more. Both are bounds.
RETOLD_SECONDS = 20 * 60.0
RETOLD_POINTS = 50_000
STATE = "state.json"
WRITING, GONE, DAMAGED = ".writing-", ".gone-", "damaged-"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Adam's moments are stored beside each parameter; the schedule's and the data's position follow from `step`.
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
COUNTERS = (
    "step",
    "validated",
    "tokens",
    "seconds",
    "peak_memory_bytes",
    "train_loss",
    "validation_loss",
    "best_validation_loss",
    "best_step",
    "kept_step",
    "kept_loss",
)


class Damaged(RunError):
    """A folder that is no complete checkpoint."""

    code = "checkpoint_damaged"

    def __init__(self) -> None:
        super().__init__("This checkpoint is damaged, so the run cannot continue from it. Take another one.")


class Unreadable(RunError):
    """The disk does not give a checkpoint out, which may be whole: nothing is concluded from that."""

    code = "checkpoint_unreadable"

    def __init__(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        super().__init__(
            f"The checkpoints of this run could not be read: {reason}. They were left as they are."
        )


@dataclass(frozen=True)
class Kept:
    """A checkpoint whose hashes have been verified."""

    folder: Path
    origin: dict[str, str]
    state: dict[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """The base's number format: `auto` might choose another one this time."""
        return DTYPES[self.state["dtype"]]


@dataclass
class Keeper:
    """Writes a run's checkpoints, and knows when the next one is due. Without a folder it does nothing."""

    folder: Path | None
    every_seconds: float
    report: Report
    origin: dict[str, str]
    dtype: torch.dtype
    device: torch.device
    began: float  # of the run on this process's monotonic clock, earlier attempts counted in
    attempt: int = 0  # that writes below the folder, and ends where a later one has taken it
    written: float = field(default_factory=time.monotonic)
    recent: deque[tuple[float, Metrics]] = field(default_factory=lambda: deque(maxlen=RETOLD_POINTS))

    def tell(self, metrics: Metrics) -> None:
        """Report values, and remember them, with the time, for the next checkpoints."""
        now = time.monotonic()
        while self.recent and now - self.recent[0][0] > RETOLD_SECONDS:
            self.recent.popleft()
        self.recent.append((now, metrics))
        self.report(metrics)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.written >= self.every_seconds

    def write(self, arms: Sequence[Arm]) -> None:
        """Write what the arms need to go on. What fails is tried once more, then a full disk raises."""
        live = [arm for arm in arms if arm.error is None]
        if self.folder is None or not any(arm.step for arm in live):
            return
        step = max(arm.step for arm in live)
        try:
            self._write(self.folder, arms, step)
        except (OSError, SafetensorError) as error:
            if is_full(error):
                self._forget_all_but(self.folder, 1)  # the newest is whole, and the other's room is needed
            self._write_again(self.folder, arms, step)
        self.written = time.monotonic()

    def write_last(self, arms: Sequence[Arm]) -> None:
        """Write before a stop; without it, whoever continues takes the checkpoint before."""
        try:
            self.write(arms)
        except DiskFull as error:
            self.report(
                Message(f"No checkpoint could be written before the stop. {error.message}", "warning")
            )

    def _write_again(self, folder: Path, arms: Sequence[Arm], step: int) -> None:
        try:
            self._write(folder, arms, step)
        except (OSError, SafetensorError) as error:
            if full := disk_error(error):
                raise full from error
            reason = getattr(error, "strerror", None) or type(error).__name__
            self.report(
                Message(
                    f"The checkpoint of step {step:,} could not be written: {reason}. The training goes on; "
                    "if it is interrupted now, it continues from the checkpoint before.",
                    "warning",
                )
            )

    def _write(self, folder: Path, arms: Sequence[Arm], step: int) -> None:
        handover.check(folder, self.attempt)
        aside = folder / f"{WRITING}{self.attempt}-{os.getpid()}"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            faults.point("checkpoint.make_folder")
            aside.mkdir(parents=True)
            self._fill(aside, arms, step)
            handover.check(folder, self.attempt)
            final = folder / f"{_next_number(folder):06d}"
            faults.point("checkpoint.rename")
            aside.rename(final)
            faults.point("checkpoint.after_rename")
            faults.point("checkpoint.sync_parent")
            sync(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._forget_all_but(folder, KEPT)
        faults.point("checkpoint.before_report")
        self.report(Checkpoint(step, final.name, file_sha256(final / MANIFEST)))

    def _fill(self, folder: Path, arms: Sequence[Arm], step: int) -> None:
        state = {
            "step": step,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "wall_seconds": time.monotonic() - self.began,
            "python_random": random.getstate(),
            "recent": [[point.arm, point.step, point.values] for _told, point in self.recent],
            "arms": [_arm_state(arm) for arm in arms],
        }
        faults.point("checkpoint.write_state")
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        for arm in arms:
            if arm.error is None:
                faults.point("checkpoint.write_arm")
                save_file(_tensors(arm), folder / _file_name(arm))
                faults.point("checkpoint.after_arm")
        names = sorted(path.name for path in folder.iterdir())
        manifest = {
            "format": FORMAT,
            "step": step,
            "attempt": self.attempt,
            "origin": self.origin,
            "files": {name: file_sha256(folder / name) for name in names},
        }
        for name in names:
            faults.point("checkpoint.sync_file")
            sync(folder / name)
        faults.point("checkpoint.write_manifest")
        (folder / MANIFEST).write_text(_to_json(manifest | {"seal": _seal(manifest)}), encoding="utf-8")
        faults.point("checkpoint.after_manifest")
        faults.point("checkpoint.sync_manifest")
        sync(folder / MANIFEST)
        faults.point("checkpoint.sync_folder")
        sync(folder)

    def _forget_all_but(self, folder: Path, count: int) -> None:
        """Renamed first: a folder that is half removed must not look like a damaged checkpoint."""
        handover.check(folder, self.attempt)
        # What an earlier attempt wrote after it had lost the folder goes too.
        kept = handover.checkpoints(folder)[:count]
        for path in handover.numbered(folder):
            if path in kept:
                continue
            gone = path.with_name(f"{GONE}{path.name}")
            with contextlib.suppress(OSError):
                path.rename(gone)
                faults.point("checkpoint.while_forgetting")
            shutil.rmtree(gone, ignore_errors=True)


def take(folder: Path, attempt: int) -> int:
    """Hold the folder as this attempt, 0 as the next one; raises TakenOver where a later one does."""
    try:
        if not attempt:
            return handover.take_as_next(folder)
        handover.take(folder, attempt)
    except OSError as error:
        raise Unreadable(error) from error
    return attempt


def newest(folder: Path, report: Report) -> Path | None:
    """The newest checkpoint that is whole, or None. Damaged ones are put aside, and that is said.

    For the attempt that holds the folder: what others have left unfinished is cleared.
    """
    for prefix in (WRITING, GONE):
        for unfinished in folder.glob(f"{prefix}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
    damaged = False
    for path in _those_that_count(folder):
        try:
            load(path)
        except Damaged:
            damaged = True
            report(Message("The newest checkpoint is damaged, so the one before it is tried.", "warning"))
            _quarantine(path)
        else:
            return path
    if damaged:
        report(Message("No checkpoint is whole, so the run starts again from step 0.", "warning"))
    return None


def _those_that_count(folder: Path) -> list[Path]:
    try:
        return handover.checkpoints(folder)
    except OSError as error:
        raise Unreadable(error) from error


def _quarantine(path: Path) -> None:
    """Put a damaged checkpoint where nobody continues from it; the latest one stays for whoever looks."""
    for earlier in path.parent.glob(f"{DAMAGED}*"):
        shutil.rmtree(earlier, ignore_errors=True)
    aside = path.with_name(f"{DAMAGED}{path.name}")
    with contextlib.suppress(OSError):
        path.rename(aside)
        os.utime(aside)  # the time for which it is kept begins now, not when it was written


def load(folder: Path) -> Kept:
    """Read and verify one checkpoint; raises Damaged unless every file is as its manifest says.

    A disk that does not answer proves no damage: that is Unreadable.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, str] = manifest["files"]
        seal = manifest.pop("seal")
        # A name with a folder in it would lead out of the checkpoint.
        safe = all(Path(name).name == name for name in files)
        whole = safe and manifest["format"] == FORMAT and seal == _seal(manifest)
        if not whole or any(file_sha256(folder / name) != digest for name, digest in files.items()):
            raise Damaged
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return Kept(folder, dict(manifest["origin"]), dict(state))
    except (*MISSING, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged from error
    except OSError as error:
        raise Unreadable(error) from error


def restore(kept: Kept, keeper: Keeper, arms: Sequence[Arm]) -> None:
    """Put the arms where the checkpoint left them; refuses a checkpoint of another run.

    Of arms that have ended nothing is told again, but what is kept of them stays in the next checkpoints.
    """
    if changed := fingerprint.changes(keeper.origin, kept.origin):
        raise CheckpointMismatch(
            f"The checkpoint was made with {' and '.join(changed)} than this run has, so "
            "it cannot be continued. Start a new run, or put back what was changed."
        )
    same_device = kept.state["device"] == keeper.device.type
    for arm, values in zip(arms, kept.state["arms"], strict=True):
        for name in COUNTERS:
            setattr(arm, name, values[name])
        if values["error"] is not None:
            arm.error = RunError(values["error"]["message"], code=values["error"]["code"])
        else:
            _restore_tensors(arm, _read(kept.folder / _file_name(arm)), with_random=same_device)
    version, numbers, gauss = kept.state["python_random"]
    random.setstate((version, tuple(numbers), gauss))
    keeper.began -= kept.state["wall_seconds"]
    over = {arm.index for arm in arms if arm.is_over}
    for arm_index, step, measured in kept.state["recent"]:
        if arm_index not in over:
            keeper.tell(Metrics(arm_index, step, measured))


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:  # it was whole when its hash was verified
        raise Unreadable(error) from error


def _restore_tensors(arm: Arm, tensors: dict[str, torch.Tensor], *, with_random: bool) -> None:
    if with_random:  # the generators of two kinds of device do not understand each other's state
        arm.random_state = tensors["random_state"]
    with torch.no_grad():
        for number, parameter in enumerate(arm.parameters):
            parameter.copy_(tensors[f"{number}.weight"])
            # AdamW keeps its count of steps on the CPU, and its moments beside the weight.
            found = {name: tensors[key] for name in MOMENTS if (key := f"{number}.{name}") in tensors}
            if found:
                arm.optimizer.state[parameter] = {
                    name: value if name == "step" else value.to(parameter.device)
                    for name, value in found.items()
                }
    if arm.kept_step == arm.step:
        arm.keep_weights()
    elif arm.kept_step:
        arm.kept = [tensors[f"{number}.kept"] for number in range(len(arm.parameters))]


def _tensors(arm: Arm) -> dict[str, torch.Tensor]:
    tensors = {"random_state": arm.random_state}
    for number, parameter in enumerate(arm.parameters):
        tensors[f"{number}.weight"] = parameter.detach().contiguous()
        moments = arm.optimizer.state.get(parameter, {})
        tensors |= {f"{number}.{name}": moments[name].contiguous() for name in MOMENTS if name in moments}
    if arm.kept_step != arm.step:  # else they are the weights above
        tensors |= {f"{number}.kept": weight for number, weight in enumerate(arm.kept)}
    return tensors


def _arm_state(arm: Arm) -> dict[str, Any]:
    error = None if arm.error is None else {"code": arm.error.code, "message": arm.error.message}
    return {name: getattr(arm, name) for name in COUNTERS} | {"error": error}


def _to_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _seal(manifest: dict[str, Any]) -> str:
    """A hash of the manifest itself: a flipped bit there must not read as another run's checkpoint."""
    return hashlib.sha256(_to_json(manifest).encode()).hexdigest()


def _file_name(arm: Arm) -> str:
    return f"{lora.arm_name(arm.index)}.safetensors"


def _next_number(folder: Path) -> int:
    return max((int(path.name) for path in handover.numbered(folder)), default=0) + 1
