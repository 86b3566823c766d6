"""One attempt of a training in a process of its own, which may be killed at any moment.

It is forked from a server that has imported torch already, so that a hundred deaths take minutes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import peft  # noqa: F401 - imported once, by the server
import transformers.models.llama.modeling_llama  # noqa: F401

from tests.engine.conftest import Recorder
from tests.moments import Interruption, install
from workers.contract import checkpoint_ownership
from workers.contract.errors import DiskFull
from workers.contract.events import ArmEnd, Event, from_line, to_line
from workers.contract.specs import TrainSpec
from workers.engine.training import checkpoints
from workers.engine.training.train import train

FULL = 28
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


class Story:
    """A run over all its lives: each attempt has an out dir of its own, the checkpoints are the job's."""

    def __init__(self, specs: Sequence[TrainSpec], folder: Path) -> None:
        self.specs, self.folder, self.lives = list(specs), folder, 0
        self.events = Recorder()

    @property
    def out(self) -> Path:
        return self.folder / f"attempt-{self.lives}"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def live(self, interruption: Interruption | None = None, *, limit: int = 0) -> int:
        """Run one attempt; returns the exit status of its process, negative where it was killed."""
        ended = {event.arm for event in self.events.of(ArmEnd)}
        self.lives += 1
        told = self.folder / "events"
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_bytes(b"")
        # The first attempt has nobody to oust; here each of them does.
        attempt = self.lives + 1
        options = (self.specs, attempt, self.out, self.checkpoints, told, interruption, sorted(ended), limit)
        process = _SERVER.Process(target=_live, args=options)
        process.start()
        process.join(120)
        # A line that was cut off by the kill is one that nobody has read.
        self.events.extend(from_line(line) for line in told.read_bytes().split(b"\n")[:-1])
        status = process.exitcode
        assert status is not None, "it did not end"
        process.close()
        return status

    def end(self, arm: int) -> ArmEnd:
        (only,) = [event for event in self.events.of(ArmEnd) if event.arm == arm]
        return only


def _live(
    specs: list[TrainSpec],
    attempt: int,
    out: Path,
    kept: Path,
    told: Path,
    interruption: Interruption | None,
    ended: list[int],
    limit: int,
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with told.open("a") as lines:
        pass_moment = install(interruption, told.parent) if interruption else None

        def report(event: Event) -> None:
            if pass_moment:
                pass_moment(f"report {type(event).__name__}")
            if not limit:
                lines.write(to_line(event))
                lines.flush()

        with contextlib.suppress(DiskFull):
            checkpoint_ownership.take_ownership(kept, attempt)
            train(
                specs,
                out,
                report=report,
                resume_from=checkpoints.find_newest(kept, report),
                checkpoint_dir=kept,
                attempt=attempt,
                ended=ended,
            )
            return
    sys.exit(FULL)
