"""The engine as a real process: its events, its exit status, and how it ends when it should."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.engine.conftest import Recorder
from workers.contract.errors import Diverged, SpecError
from workers.contract.events import (
    ArmEnd,
    Artifact,
    Event,
    Failure,
    Finished,
    Metrics,
    Result,
    Started,
    from_line,
    to_line,
)
from workers.contract.specs import BaseSpec, EvalSpec, TrainSpec, to_dict
from workers.engine.__main__ import DISK_RESERVE, failure
from workers.engine.training.train import train

ROOT = Path(__file__).parents[2]
MakeSpec = Callable[..., TrainSpec]
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the engine in its own session; whatever still runs afterwards is ended."""
    children: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "log").open("ab")

    def run(
        *arguments: str, module: str = "workers.engine", reserve: str = "", stderr: IO[bytes] = log
    ) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", DISK_RESERVE: reserve},
            start_new_session=True,
        )
        children.append(child)
        return child

    yield run
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait(timeout=10)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
    log.close()


def events(output: bytes) -> list[Event]:
    return [from_line(line) for line in output.splitlines()]


def send(child: subprocess.Popen[bytes], value: Any) -> None:
    assert child.stdin is not None
    child.stdin.write(json.dumps(value).encode() + b"\n")
    child.stdin.flush()


def wait_for(child: subprocess.Popen[bytes], kind: type[Event]) -> Event:
    assert child.stdout is not None
    for line in child.stdout:
        event = from_line(line)
        if isinstance(event, kind):
            return event
    raise AssertionError(f"the engine ended before its first {kind.__name__}")


def test_it_trains_and_then_evaluates(start: Start, make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    (tmp_path / "spec.json").write_text(json.dumps({"specs": [to_dict(spec)]}))
    child = start("train", str(tmp_path / "spec.json"), str(tmp_path / "out"))
    told = events(child.communicate(timeout=120)[0])
    assert child.returncode == 0
    assert isinstance(told[0], Started)
    assert (told[0].pid, told[0].device, told[0].threads) == (child.pid, "cpu", 1)
    assert set(told[0].versions) >= {"python", "torch", "transformers", "peft"}
    assert told[-1] == Finished("done")
    artifact = next(event for event in told if isinstance(event, Artifact))

    asked = EvalSpec(
        base=spec.base,
        data=spec.data,
        adapters={"adapter": str(tmp_path / "out" / artifact.path)},
        max_rows=2,
    )
    (tmp_path / "eval.json").write_text(json.dumps(to_dict(asked)))
    child = start("evaluate", str(tmp_path / "eval.json"), str(tmp_path / "scores"))
    told = events(child.communicate(timeout=120)[0])
    assert child.returncode == 0
    assert next(event for event in told if isinstance(event, Result)).values["rows"] == 2
    assert len((tmp_path / "scores/items.jsonl").read_text().splitlines()) == 4


def test_engine_process_gives_the_same_losses(
    start: Start, make_spec: MakeSpec, tmp_path: Path, record: Recorder
) -> None:
    child = start("train", "-", str(tmp_path / "out"))
    send(child, {"parent": os.getpid(), "spec": to_dict(make_spec())})
    told: list[Event] = []
    assert child.stdout is not None
    for line in child.stdout:  # the pipe stays open: its end would mean that this process died
        told.append(from_line(line))
    assert child.wait(timeout=30) == 0
    train([make_spec()], tmp_path / "here", report=record)
    losses = [
        event.values["train/loss"]
        for event in told
        if isinstance(event, Metrics) and event.step > 0 and "train/loss" in event.values
    ]
    assert losses == pytest.approx(record.series("train/loss"), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rate": 1e9}, "learning_rate"),
        ({"r": 0}, "`r` is 0"),
        ({"colour": "red"}, "Unknown setting `colour`"),
    ],
)
def test_a_bad_spec_fails_with_its_field(
    start: Start, make_spec: MakeSpec, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    spec = to_dict(make_spec())
    spec["hyperparameters"] |= values
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    child = start("train", str(tmp_path / "spec.json"), str(tmp_path / "out"))
    failed, finished = events(child.communicate(timeout=60)[0])
    assert child.returncode == 1
    assert isinstance(failed, Failure)
    assert failed.code == "bad_spec"
    assert said in failed.message
    assert finished == Finished("failed")


def test_spec_that_is_not_json_fails(start: Start, tmp_path: Path) -> None:
    child = start("train", "-", str(tmp_path / "out"))
    output, _ = child.communicate(b"hello\n", timeout=60)
    assert child.returncode == 1
    assert events(output)[0] == Failure("bad_spec", "The first line of standard input is not JSON.")


@pytest.mark.parametrize("reason", ["cancel", "park", "drain"])
def test_stop_line_stops(start: Start, make_spec: MakeSpec, tmp_path: Path, reason: str) -> None:
    child = start("train", "-", str(tmp_path / "out"))
    send(child, to_dict(make_spec(max_steps=1_000_000)))
    wait_for(child, Metrics)
    send(child, {"stop": reason})
    assert wait_for(child, Finished) == Finished(reason)
    assert child.wait(timeout=30) == 3


def test_finish_line_wins_over_its_signal(start: Start, make_spec: MakeSpec, tmp_path: Path) -> None:
    child = start("train", "-", str(tmp_path / "out"))
    send(child, to_dict(make_spec(max_steps=1_000_000, validation_rows=0)))
    wait_for(child, Metrics)
    child.send_signal(signal.SIGTERM)
    send(child, {"stop": "finish"})
    end = wait_for(child, ArmEnd)
    assert isinstance(end, ArmEnd)
    assert end.outcome == "stopped_early"
    assert wait_for(child, Finished) == Finished("done")
    assert child.wait(timeout=30) == 0
    assert (tmp_path / "out/arm-0/adapter/adapter_model.safetensors").is_file()


def test_ended_arms_are_not_trained(start: Start, make_spec: MakeSpec, tmp_path: Path) -> None:
    specs = [to_dict(make_spec(max_steps=2)), to_dict(make_spec(max_steps=2, seed=7))]
    child = start("train", "-", str(tmp_path / "out"))
    send(child, {"parent": os.getpid(), "spec": {"specs": specs}, "ended": [0]})
    end = wait_for(child, ArmEnd)
    assert isinstance(end, ArmEnd)
    assert (end.arm, wait_for(child, Finished)) == (1, Finished("done"))
    assert [path.name for path in (tmp_path / "out").glob("arm-*")] == ["arm-1"]


@pytest.mark.parametrize("ended", [[1], "0"])
def test_unknown_ended_arm_is_refused(
    start: Start, make_spec: MakeSpec, tmp_path: Path, ended: object
) -> None:
    child = start("train", "-", str(tmp_path / "out"))
    send(child, {"parent": os.getpid(), "spec": to_dict(make_spec()), "ended": ended})
    failed = wait_for(child, Failure)
    assert failed == Failure("bad_spec", "`ended` must be a list of arms from 0 to 0.")


def test_disk_reserve_can_be_set(start: Start, make_spec: MakeSpec, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(make_spec())))
    child = start("train", str(tmp_path / "spec.json"), str(tmp_path / "out"), reserve=str(10**18))
    failed = wait_for(child, Failure)
    assert isinstance(failed, Failure)
    assert failed.code == "disk_full"
    assert "1,000,000,000.00 GB in reserve" in failed.message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_without_line_drains_supervised_engine(
    start: Start, make_spec: MakeSpec, tmp_path: Path, number: int
) -> None:
    child = start("train", "-", str(tmp_path / "out"))
    send(child, to_dict(make_spec(max_steps=1_000_000)))
    wait_for(child, Metrics)
    child.send_signal(number)
    assert wait_for(child, Finished) == Finished("drain")
    assert child.wait(timeout=30) == 3


def test_interrupt_cancels_an_unsupervised_engine(start: Start, make_spec: MakeSpec, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(make_spec(max_steps=1_000_000))))
    child = start("train", str(tmp_path / "spec.json"), str(tmp_path / "out"))
    wait_for(child, Metrics)
    child.send_signal(signal.SIGINT)
    assert wait_for(child, Finished) == Finished("cancel")


@pytest.fixture
def full_log() -> Iterator[IO[bytes]]:
    """A log on a disk without room."""
    with open("/dev/full", "wb", buffering=0) as log:
        yield log


def test_full_log_does_not_lose_the_last_events(
    start: Start, make_spec: MakeSpec, tmp_path: Path, full_log: IO[bytes]
) -> None:
    spec = make_spec(base=BaseSpec(name="example/none", path=str(tmp_path / "none")))
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(spec)))
    child = start("train", str(tmp_path / "spec.json"), str(tmp_path / "out"), stderr=full_log)
    failed = wait_for(child, Failure)
    assert isinstance(failed, Failure)
    assert failed.code == "bad_model"
    assert (wait_for(child, Finished), child.wait(timeout=30)) == (Finished("failed"), 1)


def test_library_output_to_a_full_log_is_dropped(
    start: Start, make_spec: MakeSpec, tmp_path: Path, full_log: IO[bytes]
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(make_spec(max_steps=1))))
    arguments = ("train", str(tmp_path / "spec.json"), str(tmp_path / "out"))
    child = start(*arguments, module="tests.engine.noisy_engine", stderr=full_log)
    assert events(child.communicate(timeout=120)[0])[-1] == Finished("done")
    assert child.returncode == 0


def test_engine_dies_when_its_input_closes(start: Start, make_spec: MakeSpec, tmp_path: Path) -> None:
    child = start("train", "-", str(tmp_path / "out"))
    send(child, to_dict(make_spec(max_steps=1_000_000)))
    wait_for(child, Metrics)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(timeout=10) == -signal.SIGKILL


def test_engine_does_not_start_for_a_dead_parent(start: Start, make_spec: MakeSpec, tmp_path: Path) -> None:
    child = start("train", "-", str(tmp_path / "out"))
    send(child, {"parent": os.getpid() + 1, "spec": to_dict(make_spec())})
    assert child.wait(timeout=30) == 1
    assert not (tmp_path / "out").exists()


def test_library_output_goes_to_the_log(start: Start, make_spec: MakeSpec, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(make_spec(max_steps=1))))
    arguments = ("train", str(tmp_path / "spec.json"), str(tmp_path / "out"))
    child = start(*arguments, module="tests.engine.noisy_engine")
    assert events(child.communicate(timeout=60)[0])[-1] == Finished("done")
    assert child.returncode == 0
    log = (tmp_path / "log").read_bytes()
    assert b"stray" in log
    assert b"raw" in log


def test_the_entry_point_alone_imports_no_torch() -> None:
    code = "import sys, workers.engine.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_failure_codes() -> None:
    assert failure(SpecError("r", "`r` is 0.")) == Failure("bad_spec", "`r` is 0.")
    assert failure(Diverged("The loss was no number.")) == Failure("diverged", "The loss was no number.")
    memory = failure(
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345 bytes."
        )
    )
    assert memory.code == "out_of_memory"
    assert "12345 bytes" in memory.message
    assert failure(MemoryError()).code == "out_of_memory"
    assert failure(OSError(errno.ENOMEM, "Cannot allocate memory")).code == "out_of_memory"
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        told = failure(OSError(number, os.strerror(number)))
        assert told == Failure("disk_full", "The disk is full, so the result could not be written.")
    broken = failure(OSError(errno.EIO, "Input/output error"))
    assert broken.code == "disk_full"
    assert broken.message.startswith("The disk could not be written.")
    rust = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert failure(rust).code == "disk_full", "safetensors writes without Python's errors"
    hidden = failure(KeyError("/srv/secret"))
    assert hidden.code == "internal_error"
    assert "secret" not in hidden.message
    assert from_line(to_line(hidden)) == hidden


def test_a_result_too_long_for_a_line_is_a_failure() -> None:
    program = (
        "from workers.contract.events import Result\n"
        "from workers.engine import __main__\n"
        "__main__._event_reporter()(Result({'columns': 'x' * 5_000_000}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.stdout
    assert "The result of this job is larger than 4 MB." in done.stderr


STARTS_AN_ENGINE = """
import subprocess, sys, time
command = [sys.executable, "-m", "workers.engine", "train", "-", sys.argv[1]]
print(subprocess.Popen(command, stdin=int(sys.argv[2]), pass_fds=[int(sys.argv[2])]).pid, flush=True)
time.sleep(60)
"""


def test_engine_dies_with_its_parent_while_its_input_is_open(tmp_path: Path) -> None:
    """A third process may hold the other end of the pipe, so that its closing never comes."""
    ours, theirs = os.pipe()
    command = [sys.executable, "-c", STARTS_AN_ENGINE, str(tmp_path), str(ours)]
    try:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, pass_fds=[ours]) as parent:
            assert parent.stdout is not None
            engine = psutil.Process(int(parent.stdout.readline()))
            until = time.monotonic() + 60
            spent = -1.0
            # It waits for its spec once it needs no more processor time.
            while (now := sum(engine.cpu_times()[:2])) != spent or not now:
                assert time.monotonic() < until
                spent = now
                time.sleep(1.5)
            parent.kill()
        _gone, alive = psutil.wait_procs([engine], timeout=30)
        assert not alive
    finally:
        os.close(ours)
        os.close(theirs)
