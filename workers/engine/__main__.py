"""`python -m workers.engine {train|evaluate|import|inspect} SPEC.json OUT_DIR`: one job in one process.

SPEC `-` reads the first line of standard input: the plain spec, or `{"parent": pid, "spec": {...},
"ended": [arms], "attempt": number}`, where `ended` names the arms that have their outcome already. Without a
number it is the next attempt after the last that trained there. Later lines are requests,
`{"stop": reason}` with one of `events.STOPS` or `{"stop_arm": arm, "reason": reason}` with one of
`events.ARM_STOPS`; the end of the input means that the parent died, and so does this process. Events go to
standard output as JSON lines, everything else to standard error.
Exit status: 0 done, 1 failed (a Failure event says why), 3 stopped.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.engine import runtime
from workers.errors import OutOfMemory, RunError, SpecError, Stopped, TakenOver, disk_error, lack_of_memory
from workers.events import ARM_STOPS, STOPS, Event, Failure, Finished, Report, Started, stronger, to_line
from workers.specs import SPEC_TYPES, EvalSpec, ImportSpec, InspectSpec, from_dict, needs_4bit

PR_SET_PDEATHSIG = 1
DONE, FAILED, STOPPED = 0, 1, 3
# The line that says why comes with the signal, and may be read a little later.
LINE_SECONDS = 0.5
RESERVE = "GRAFTWORKS_DISK_RESERVE_BYTES"


class Log(io.FileIO):
    """Standard error, the job's log. A full disk may cost its lines, never the job or its last words."""

    def write(self, data: Any, /) -> int:
        """Write what can be written; the rest is gone."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


class StopFlag:
    """Why to stop, once somebody asked; the strongest reason wins. A signal alone means a drain."""

    def __init__(self) -> None:
        self.reason = ""
        self.arms: dict[int, str] = {}
        self.signalled = math.inf

    def ask(self, reason: str) -> None:
        if reason in STOPS:
            self.reason = stronger(reason, self.reason)

    def ask_arm(self, arm: int, reason: str) -> None:
        if reason in ARM_STOPS:
            self.arms[arm] = stronger(reason, self.of_arm(arm))

    def of_arm(self, arm: int) -> str:
        """Why this arm is to end alone, or ""."""
        return self.arms.get(arm, "")

    def signal(self) -> None:
        self.signalled = min(self.signalled, time.monotonic())

    def __call__(self) -> str:
        if not self.reason and time.monotonic() - self.signalled >= LINE_SECONDS:
            return "drain"
        return self.reason


@dataclass(frozen=True)
class Asked:
    """What the command line and the first line of the input ask for."""

    kind: str
    specs: list[Any]
    ended: list[int]
    out_dir: Path
    checkpoints: Path
    attempt: int  # 0: whoever starts it does not count them


def main(arguments: list[str] | None = None) -> int:
    """Run one job; the answer is the exit status. The one catch-all of the engine is here."""
    parser = argparse.ArgumentParser(prog="python -m workers.engine", description="Run one Graftworks job.")
    parser.add_argument("kind", choices=sorted(SPEC_TYPES))
    parser.add_argument("spec", help="file with the spec as JSON, or - for standard input")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument(
        "--checkpoints", type=Path, help="where a training keeps its checkpoints; OUT_DIR/checkpoints"
    )
    given = parser.parse_args(arguments)
    stop, report = StopFlag(), _event_reporter()
    signal.signal(signal.SIGTERM, lambda *_: stop.signal())
    # Who has a supervisor is stopped for good by its word alone.
    signal.signal(signal.SIGINT, lambda *_: stop.signal() if given.spec == "-" else stop.ask("cancel"))
    try:
        values, ended, attempt = _read_spec(given.spec, stop)
        specs = _parse(given.kind, values)
        kept_in = given.checkpoints or given.out_dir / "checkpoints"
        ended = _check_ended(ended, len(specs))
        asked = Asked(given.kind, specs, ended, given.out_dir, kept_in, _check_attempt(attempt))
        # What libraries will change in their next versions concerns nobody who reads the job's log.
        warnings.simplefilter("ignore", FutureWarning)
        runtime.prepare_environment(offline=asked.kind != "inspect", in_4bit=needs_4bit(values))
        report(_started_event(asked.kind))
        asked.out_dir.mkdir(parents=True, exist_ok=True)
        _run(asked, report, stop)
    except Stopped as stopped:
        report(Finished(stopped.reason))
        return STOPPED
    except TakenOver as lost:
        # Whoever watches may be without the database, and the log is all that there is.
        print(lost.message, file=sys.stderr)
        report(Finished("taken_over"))
        return STOPPED
    except Exception as error:
        traceback.print_exc()
        report(failure(error))
        report(Finished("failed"))
        return FAILED
    report(Finished("done"))
    return DONE


def _event_reporter() -> Report:
    """Keep the real standard output for events; whatever a library prints goes to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    log = io.BufferedWriter(Log(2, "w", closefd=False))
    sys.stdout = sys.stderr = io.TextIOWrapper(log, "utf-8", "backslashreplace", line_buffering=True)

    def report(event: Event) -> None:
        events.write(to_line(event))
        events.flush()

    return report


def _read_spec(source: str, stop: StopFlag) -> tuple[Any, Any, Any]:
    """The spec, the arms that have ended, and which attempt this is."""
    if source != "-":
        try:
            return json.loads(Path(source).read_text(encoding="utf-8")), [], 0
        except (OSError, ValueError) as error:
            raise SpecError("", f"The spec file cannot be read as JSON: {error}") from error
    _die_with_parent()
    # Unbuffered: a thread waiting inside a buffered reader would make the interpreter abort at its exit.
    lines = io.FileIO(0, closefd=False)
    line = lines.readline()
    try:
        envelope = json.loads(line)
    except ValueError as error:
        raise SpecError("", "The first line of standard input is not JSON.") from error
    values, ended, attempt = envelope, [], 0
    if isinstance(envelope, dict) and "spec" in envelope:
        if envelope.get("parent", os.getppid()) != os.getppid():
            sys.exit(FAILED)  # the parent died before its death could be noticed
        values, ended, attempt = envelope["spec"], envelope.get("ended", []), envelope.get("attempt", 0)
    threading.Thread(target=_listen, args=(lines, stop), daemon=True).start()
    return values, ended, attempt


def _check_ended(ended: Any, arms: int) -> list[int]:
    if not isinstance(ended, list) or not all(index in range(arms) for index in ended):
        raise SpecError("ended", f"`ended` must be a list of arms from 0 to {arms - 1}.")
    return ended


def _check_attempt(attempt: Any) -> int:
    if not isinstance(attempt, int) or attempt < 0:
        raise SpecError("attempt", "`attempt` must be a whole number from 1.")
    return attempt


def _die_with_parent() -> None:
    """Linux kills this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen(lines: io.FileIO, stop: StopFlag) -> None:
    """Take requests until the pipe closes; then nobody wants the result any more."""
    for line in lines:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        known = request if isinstance(request, dict) else {}
        if isinstance(known.get("stop"), str):
            stop.ask(known["stop"])
        elif isinstance(known.get("stop_arm"), int) and isinstance(known.get("reason"), str):
            stop.ask_arm(known["stop_arm"], known["reason"])
        else:
            print(f"Unknown request: {line[:200]!r}", file=sys.stderr)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _parse(kind: str, values: Any) -> list[Any]:
    if not isinstance(values, dict):
        raise SpecError("", "The spec must be a JSON object.")
    plain = values["specs"] if kind == "train" and "specs" in values else [values]
    if not isinstance(plain, list) or not all(isinstance(item, dict) for item in plain):
        raise SpecError("specs", "`specs` must be a list of JSON objects.")
    return [from_dict(SPEC_TYPES[kind], item) for item in plain]


def _started_event(kind: str) -> Started:
    device = "cpu"
    if kind in ("train", "evaluate"):
        device = runtime.device_name(runtime.pick_device())
    return Started(os.getpid(), device, runtime.versions(), runtime.thread_count())


def _run(asked: Asked, report: Report, should_stop: StopFlag) -> None:
    """Import only what this kind of job needs: start-up time is part of every job."""
    if asked.kind == "train":
        _train(asked, report, should_stop)
    elif asked.kind == "evaluate":
        from workers.engine.evaluate import evaluate

        scored: EvalSpec = asked.specs[0]
        evaluate(scored, asked.out_dir, report=report, should_stop=should_stop)
    elif asked.kind == "import":
        from workers.engine import importing

        imported: ImportSpec = asked.specs[0]
        importing.run(imported, asked.out_dir, report=report, should_stop=should_stop)
    else:
        from workers.engine import inspecting

        inspected: InspectSpec = asked.specs[0]
        inspecting.run(inspected, asked.out_dir, report=report, should_stop=should_stop)


def _train(asked: Asked, report: Report, should_stop: StopFlag) -> None:
    """Continue from the newest checkpoint that is whole, or begin; whoever trained there before is out."""
    from workers.engine import checkpoints, disk_room
    from workers.engine.train import train

    attempt = checkpoints.take(asked.checkpoints, asked.attempt)
    train(
        asked.specs,
        asked.out_dir,
        report=report,
        should_stop=should_stop,
        should_stop_arm=should_stop.of_arm,
        resume_from=checkpoints.newest(asked.checkpoints, report),
        checkpoint_dir=asked.checkpoints,
        attempt=attempt,
        ended=asked.ended,
        disk_reserve=int(os.environ.get(RESERVE) or disk_room.RESERVE),
    )


def failure(error: Exception) -> Failure:
    """The event for the person who asked; the traceback stays in the log."""
    # Wherever it was met, it is no misfit of a model or an adapter.
    if lack := lack_of_memory(error):
        return Failure(OutOfMemory.code, _memory_sentence(lack))
    if isinstance(error, SpecError):
        return Failure("bad_spec", error.message)
    if isinstance(error, RunError):
        return Failure(error.code, error.message)
    if full := disk_error(error):
        return Failure(full.code, full.message)
    return Failure("internal_error", f"The engine stopped with an unexpected {type(error).__name__}.")


def _memory_sentence(error: BaseException) -> str:
    wanted = re.search(r"allocate ([\d.,]+ ?\w+)", str(error))
    asked = f" when it asked for another {wanted.group(1)}" if wanted else ""
    held = runtime.peak_memory_bytes() / 2**30
    return f"There was not enough memory{asked}; the process had used up to {held:.1f} GiB before."


if __name__ == "__main__":
    status = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Everything is written. Taking torch apart in order costs seconds in which the device stays occupied.
    os._exit(status)
