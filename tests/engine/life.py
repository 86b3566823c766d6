"""Attempts of a training in child processes, each with a fault if wanted.

They are forked from the test's own process, which has imported torch already.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.engine.conftest import Recorder
from tests.moments import Interruption, install
from workers.contract import checkpoint_ownership
from workers.contract.errors import DiskFull
from workers.contract.events import ArmEnd, Event, from_line, to_line
from workers.contract.specs import TrainSpec
from workers.engine.training import checkpoints
from workers.engine.training.train import train

DISK_FULL = 28


class Training:
    """A training over several attempts: each has its own output folder, the checkpoints are shared."""

    def __init__(self, specs: Sequence[TrainSpec], folder: Path) -> None:
        self.specs, self.folder, self.attempts = list(specs), folder, 0
        self.events = Recorder()

    @property
    def out(self) -> Path:
        return self.folder / f"attempt-{self.attempts}"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def run_attempt(self, interruption: Interruption | None = None, *, limit: int = 0) -> int:
        """Run one attempt; return the exit status of its process, negative if it was killed."""
        ended = {event.arm for event in self.events.of(ArmEnd)}
        self.attempts += 1
        lines = self.folder / "events"
        lines.parent.mkdir(parents=True, exist_ok=True)
        lines.write_bytes(b"")
        # From 2, as the first attempt takes no ownership from another.
        attempt = self.attempts + 1
        arguments = (
            self.specs,
            attempt,
            self.out,
            self.checkpoints,
            lines,
            interruption,
            sorted(ended),
            limit,
        )
        process = multiprocessing.get_context("fork").Process(target=_run_attempt, args=arguments)
        process.start()
        process.join(120)
        # The kill may have cut off the last line.
        self.events.extend(from_line(line) for line in lines.read_bytes().split(b"\n")[:-1])
        status = process.exitcode
        assert status is not None, "the attempt did not end"
        process.close()
        return status

    def end(self, arm: int) -> ArmEnd:
        (only,) = [event for event in self.events.of(ArmEnd) if event.arm == arm]
        return only


def _run_attempt(
    specs: list[TrainSpec],
    attempt: int,
    out: Path,
    checkpoint_dir: Path,
    lines: Path,
    interruption: Interruption | None,
    ended: list[int],
    limit: int,
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with lines.open("a") as stream:
        report_operation = install(interruption, lines.parent) if interruption else None

        def report(event: Event) -> None:
            if report_operation:
                report_operation(f"report {type(event).__name__}")
            if not limit:
                stream.write(to_line(event))
                stream.flush()

        with contextlib.suppress(DiskFull):
            checkpoint_ownership.take_ownership(checkpoint_dir, attempt)
            train(
                specs,
                out,
                report=report,
                resume_from=checkpoints.find_newest(checkpoint_dir, report),
                checkpoint_dir=checkpoint_dir,
                attempt=attempt,
                ended=ended,
            )
            return
    sys.exit(DISK_FULL)
