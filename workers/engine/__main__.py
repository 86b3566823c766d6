"""`python -m workers.engine {train|evaluate|import|inspect} SPEC.json OUT_DIR`: one job in one process.

SPEC `-` reads the first line of standard input: `{"parent": pid, "spec": {...}}` or the plain spec. Later
lines are requests, `{"stop": "cancel"|"drain"}`; the end of the input means that the parent died, and so does
this process. Events go to standard output as JSON lines, everything else to standard error.
Exit status: 0 done, 1 failed (a Failure event says why), 3 stopped.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import io
import json
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

from workers.engine import runtime
from workers.errors import OutOfMemory, RunError, SpecError, Stopped
from workers.events import Bye, Event, Failure, Hello, Report, ShouldStop, to_line
from workers.specs import SPEC_TYPES, EvalSpec, ImportSpec, InspectSpec, TrainSpec, from_dict

PR_SET_PDEATHSIG = 1
DONE, FAILED, STOPPED = 0, 1, 3


class StopFlag:
    """Why to stop, once somebody asked. A cancel outranks a drain."""

    reason = ""

    def ask(self, reason: str) -> None:
        if reason in ("cancel", "drain") and self.reason != "cancel":
            self.reason = reason

    def __call__(self) -> str:
        return self.reason


def main(arguments: list[str] | None = None) -> int:
    """Run one job; the answer is the exit status. The one catch-all of the engine is here."""
    parser = argparse.ArgumentParser(prog="python -m workers.engine", description="Run one Graftworks job.")
    parser.add_argument("kind", choices=sorted(SPEC_TYPES))
    parser.add_argument("spec", help="file with the spec as JSON, or - for standard input")
    parser.add_argument("out_dir", type=Path)
    asked = parser.parse_args(arguments)
    stop, report = StopFlag(), _event_reporter()
    signal.signal(signal.SIGTERM, lambda *_: stop.ask("drain"))
    signal.signal(signal.SIGINT, lambda *_: stop.ask("cancel"))
    try:
        values = _read_spec(asked.spec, stop)
        specs = _parse(asked.kind, values)
        # What libraries will change in their next versions concerns nobody who reads the job's log.
        warnings.simplefilter("ignore", FutureWarning)
        runtime.prepare_environment(offline=asked.kind != "inspect")
        report(_hello(asked.kind))
        asked.out_dir.mkdir(parents=True, exist_ok=True)
        _run(asked.kind, specs, asked.out_dir, report, stop)
    except Stopped as stopped:
        report(Bye(stopped.reason))
        return STOPPED
    except Exception as error:
        traceback.print_exc()
        report(failure(error))
        report(Bye("failed"))
        return FAILED
    report(Bye("done"))
    return DONE


def _event_reporter() -> Report:
    """Keep the real standard output for events; whatever a library prints goes to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(event: Event) -> None:
        events.write(to_line(event))
        events.flush()

    return report


def _read_spec(source: str, stop: StopFlag) -> Any:
    if source != "-":
        try:
            return json.loads(Path(source).read_text(encoding="utf-8"))
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
    if isinstance(envelope, dict) and "spec" in envelope:
        if envelope.get("parent", os.getppid()) != os.getppid():
            sys.exit(FAILED)  # the parent died before its death could be noticed
        envelope = envelope["spec"]
    threading.Thread(target=_listen, args=(lines, stop), daemon=True).start()
    return envelope


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
        if isinstance(request, dict) and isinstance(request.get("stop"), str):
            stop.ask(request["stop"])
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


def _hello(kind: str) -> Hello:
    device = "cpu"
    if kind in ("train", "evaluate"):
        device = runtime.device_name(runtime.pick_device())
    return Hello(os.getpid(), device, runtime.versions(), runtime.thread_count())


def _run(kind: str, specs: list[Any], out_dir: Path, report: Report, should_stop: ShouldStop) -> None:
    """Import only what this kind of job needs: start-up time is part of every job."""
    if kind == "train":
        from workers.engine.train import train

        trained: list[TrainSpec] = specs
        train(trained, out_dir, report=report, should_stop=should_stop)
    elif kind == "evaluate":
        from workers.engine.evaluate import evaluate

        scored: EvalSpec = specs[0]
        evaluate(scored, out_dir, report=report, should_stop=should_stop)
    elif kind == "import":
        from workers.engine import importing

        imported: ImportSpec = specs[0]
        importing.run(imported, out_dir, report=report, should_stop=should_stop)
    else:
        from workers.engine import inspecting

        inspected: InspectSpec = specs[0]
        inspecting.run(inspected, out_dir, report=report, should_stop=should_stop)


def failure(error: Exception) -> Failure:
    """The event for the person who asked; the traceback stays in the log."""
    if isinstance(error, SpecError):
        return Failure("bad_spec", error.message)
    if isinstance(error, RunError):
        return Failure(error.code, error.message)
    if isinstance(error, MemoryError) or _is_torch_memory(error):
        return Failure(OutOfMemory.code, _memory_sentence(error))
    if _is_full_disk(error):
        return Failure("disk_full", "The disk is full, so the result could not be written.")
    return Failure("internal_error", f"The engine stopped with an unexpected {type(error).__name__}.")


def _is_full_disk(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    # safetensors writes in Rust, whose errors carry the number in their text alone.
    told = any(f"(os error {number})" in str(error) for number in full)
    return told or (isinstance(error, OSError) and error.errno in full)


def _is_torch_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _memory_sentence(error: Exception) -> str:
    wanted = re.search(r"allocate ([\d.,]+ ?\w+)", str(error))
    asked = f" when it asked for another {wanted.group(1)}" if wanted else ""
    held = runtime.peak_memory_bytes() / 2**30
    return f"There was not enough memory{asked}; the process had used up to {held:.1f} GiB before."


if __name__ == "__main__":
    sys.exit(main())
