"""`python -m workers.engine KIND SPEC.json OUT_DIR`: one job in one process.

KIND is train, evaluate, import, inspect, serve, export or push. SPEC `-` reads the first line of standard
input: the spec, or `{"parent": pid, "spec": {...}, "ended": [arms], "attempt": number, "token": text}`,
where `ended` are the arms that have reported their outcome and `token` is that of a push. An inference job's
`token` is the key with which other machines connect to the address `listen`. Without a number it is the next
attempt after the last one in the checkpoint folder. Later lines are requests, `{"stop":
reason}` with one of `events.STOPS`; the end of the input means that the parent died, and this process ends
itself. Events go to standard output as JSON lines, everything else to standard error.
Exit status: 0 done, 1 failed (a Failure event has the reason), 3 stopped.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.contract.errors import (
    OutOfMemory,
    RunError,
    SpecError,
    Stopped,
    TakenOver,
    disk_error,
    memory_error,
)
from workers.contract.events import (
    MAX_LINE,
    STOPS,
    Event,
    Failure,
    Finished,
    Report,
    Started,
    stronger,
    to_line,
)
from workers.contract.specs import SPEC_TYPES, from_dict, needs_4bit
from workers.engine import runtime

PR_SET_PDEATHSIG = 1
DONE, FAILED, STOPPED = 0, 1, 3
# The line with the reason comes with the signal, and may be read a little later.
LINE_SECONDS = 0.5
DISK_RESERVE = "GRAFTWORKS_DISK_RESERVE_BYTES"


class LogStream(io.FileIO):
    """Standard error, the job's log. A full disk may cost its lines, never the job or its last event."""

    def write(self, data: Any, /) -> int:
        """Write as much as the disk takes and drop the rest."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


class StopFlag:
    """The strongest requested reason to stop. A signal without a line means `drain`."""

    def __init__(self) -> None:
        self.reason = ""
        self.signalled_at = math.inf

    def request(self, reason: str) -> None:
        if reason in STOPS:
            self.reason = stronger(reason, self.reason)

    def receive_signal(self) -> None:
        self.signalled_at = min(self.signalled_at, time.monotonic())

    def __call__(self) -> str:
        if not self.reason and time.monotonic() - self.signalled_at >= LINE_SECONDS:
            return "drain"
        return self.reason


@dataclass(frozen=True)
class EngineCommand:
    """One job, from the command line and the first line of standard input."""

    kind: str
    specs: list[Any]
    out_dir: Path
    checkpoint_dir: Path
    ended: list[int]
    attempt: int  # 0: the next one after the last in the checkpoint folder
    in_4bit: bool
    token: str = field(repr=False)  # of a push, or key of TCP connections: in no spec and no environment
    listen: str = ""  # an inference job's address for other machines
    promised: int = 0  # bytes that trainings on its machine are still to take


def main(arguments: list[str] | None = None) -> int:
    """Run one job and return the exit status. The one catch-all of the engine is here."""
    parser = argparse.ArgumentParser(prog="python -m workers.engine", description="Run one Graftworks job.")
    parser.add_argument("kind", choices=sorted(SPEC_TYPES))
    parser.add_argument("spec", help="file with the spec as JSON, or - for standard input")
    parser.add_argument("out_dir", type=Path)
    parser.add_argument(
        "--checkpoints", type=Path, help="folder of a training's checkpoints; default OUT_DIR/checkpoints"
    )
    options = parser.parse_args(arguments)
    stop, report = StopFlag(), _event_reporter()
    signal.signal(signal.SIGTERM, lambda *_: stop.receive_signal())
    # With a supervisor Ctrl-C, too, means only that a line with the reason follows.
    is_supervised = options.spec == "-"
    signal.signal(
        signal.SIGINT, lambda *_: stop.receive_signal() if is_supervised else stop.request("cancel")
    )
    try:
        command = _parse_command(options, _read_envelope(options.spec, stop))
        # Deprecations in libraries do not concern the readers of a job's log.
        warnings.simplefilter("ignore", FutureWarning)
        runtime.prepare_environment(offline=command.kind not in ("inspect", "push"), in_4bit=command.in_4bit)
        report(_started_event(command.kind))
        command.out_dir.mkdir(parents=True, exist_ok=True)
        _run(command, report, stop)
    except Stopped as stopped:
        report(Finished(stopped.reason))
        return STOPPED
    except TakenOver as lost:
        # The supervisor may be without its database, so the log has to say it too.
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
    """Keep the real standard output for events; everything that a library prints goes to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    log = io.BufferedWriter(LogStream(2, "w", closefd=False))
    sys.stdout = sys.stderr = io.TextIOWrapper(log, "utf-8", "backslashreplace", line_buffering=True)

    def report(event: Event) -> None:
        line = to_line(event)
        # The supervisor reads no longer line, and a result that is lost looks like one that never came.
        if len(line) > MAX_LINE:
            raise RunError(f"The {type(event).__name__.lower()} of this job is larger than 4 MB.")
        events.write(line)
        events.flush()

    return report


def _read_envelope(source: str, stop: StopFlag) -> dict[str, Any]:
    """Return `{"spec": …}`, and what else a supervisor sent with it; start listening for its requests."""
    if source != "-":
        try:
            return {"spec": json.loads(Path(source).read_text(encoding="utf-8"))}
        except (OSError, ValueError) as error:
            raise SpecError("", f"The spec file cannot be read as JSON: {error}") from error
    die_with_parent()
    # Unbuffered: a thread waiting inside a buffered reader would make the interpreter abort at its exit.
    lines = io.FileIO(0, closefd=False)
    try:
        message = json.loads(lines.readline())
    except ValueError as error:
        raise SpecError("", "The first line of standard input is not JSON.") from error
    is_envelope = isinstance(message, dict) and "spec" in message
    if is_envelope and message.get("parent", os.getppid()) != os.getppid():
        sys.exit(FAILED)  # the parent died before its death could be noticed
    threading.Thread(target=_listen, args=(lines, stop), daemon=True).start()
    return message if is_envelope else {"spec": message}


def _parse_command(options: argparse.Namespace, envelope: dict[str, Any]) -> EngineCommand:
    """Check the command; raises SpecError."""
    kind, values = options.kind, envelope["spec"]
    ended, attempt = envelope.get("ended", []), envelope.get("attempt", 0)
    if not isinstance(values, dict):
        raise SpecError("", "The spec must be a JSON object.")
    plain = values["specs"] if kind == "train" and "specs" in values else [values]
    if not isinstance(plain, list) or not all(isinstance(item, dict) for item in plain):
        raise SpecError("specs", "`specs` must be a list of JSON objects.")
    specs: list[Any] = [from_dict(SPEC_TYPES[kind], item) for item in plain]
    if not isinstance(ended, list) or not all(index in range(len(specs)) for index in ended):
        raise SpecError("ended", f"`ended` must be a list of arms from 0 to {len(specs) - 1}.")
    if not isinstance(attempt, int) or attempt < 0:
        raise SpecError("attempt", "`attempt` must be a whole number from 1.")
    checkpoint_dir = options.checkpoints or options.out_dir / "checkpoints"
    in_4bit, token = needs_4bit(values), str(envelope.get("token", ""))
    return EngineCommand(
        kind, specs, options.out_dir, checkpoint_dir, ended, attempt, in_4bit, token,
        listen=str(envelope.get("listen", "")), promised=int(envelope.get("promised", 0)),
    )  # fmt: skip


def die_with_parent() -> None:
    """Let Linux kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _listen(lines: io.FileIO, stop: StopFlag) -> None:
    """Take requests until the pipe closes; then the parent is gone and this process ends itself."""
    for line in lines:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        if isinstance(request, dict) and isinstance(request.get("stop"), str):
            stop.request(request["stop"])
        else:
            print(f"Unknown request: {line[:200]!r}", file=sys.stderr)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _started_event(kind: str) -> Started:
    device = "cpu"
    if kind in ("train", "evaluate", "serve"):
        device = runtime.device_name(runtime.pick_device())
    return Started(os.getpid(), device, runtime.versions(), runtime.thread_count())


def _run(command: EngineCommand, report: Report, should_stop: StopFlag) -> None:
    """Import only what this kind of job needs: start-up time is part of every job."""
    if command.kind == "train":
        _train(command, report, should_stop)
    elif command.kind == "evaluate":
        from workers.engine.evaluation.evaluate import evaluate

        evaluate(command.specs[0], command.out_dir, report=report, should_stop=should_stop)
    elif command.kind == "serve":
        from workers.engine.serving.server import serve

        serve(
            command.specs[0],
            report=report,
            should_stop=should_stop,
            listen=command.listen,
            key=command.token,
            promised=command.promised,
        )
    elif command.kind == "export":
        from workers.engine.exporting.export import export

        spec, reserve = command.specs[0], _disk_reserve()
        export(spec, command.out_dir, report=report, should_stop=should_stop, disk_reserve=reserve)
    elif command.kind == "push":
        from workers.engine.exporting.push import push

        spec, reserve = command.specs[0], _disk_reserve()
        push(
            spec,
            command.token,
            command.out_dir,
            report=report,
            should_stop=should_stop,
            disk_reserve=reserve,
        )
    elif command.kind == "import":
        from workers.engine.importing import run_import

        run_import.run_import(command.specs[0], command.out_dir, report=report, should_stop=should_stop)
    else:
        from workers.engine.base_models import inspect_model

        inspect_model.inspect_base_model(
            command.specs[0], command.out_dir, report=report, should_stop=should_stop
        )


def _train(command: EngineCommand, report: Report, should_stop: StopFlag) -> None:
    """Take ownership of the checkpoints, then continue from the newest intact one or start at step 0."""
    from workers.engine import disk_room
    from workers.engine.training import checkpoints
    from workers.engine.training.train import train

    attempt = checkpoints.take_ownership(command.checkpoint_dir, command.attempt)
    checkpoint = checkpoints.find_newest(command.checkpoint_dir, report)
    disk_room.check_room(command.checkpoint_dir, command.specs, _disk_reserve())
    train(
        command.specs,
        command.out_dir,
        report=report,
        should_stop=should_stop,
        resume_from=checkpoint,
        checkpoint_dir=command.checkpoint_dir,
        attempt=attempt,
        ended=command.ended,
    )


def _disk_reserve() -> int:
    """Return the bytes that must stay free on the disk."""
    from workers.engine import disk_room

    return int(os.environ.get(DISK_RESERVE) or disk_room.RESERVE)


def failure(error: Exception) -> Failure:
    """Return the event for the user; the traceback stays in the log."""
    # Lack of memory is often wrapped in an error that blames the model or the adapter.
    if lack := memory_error(error):
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
    request = f" to allocate another {wanted.group(1)}" if wanted else ""
    torch = sys.modules.get("torch")
    device = torch.device("cuda", 0) if torch and torch.cuda.is_initialized() else None
    peak = runtime.peak_memory_bytes(device) / 2**30
    return f"There was not enough memory{request}; the process had used up to {peak:.1f} GiB before."


if __name__ == "__main__":
    status = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Everything is written. An orderly exit of torch costs seconds in which the device stays occupied.
    os._exit(status)
