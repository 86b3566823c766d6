"""`manage.py start` piece by piece: what it refuses, what it runs, and how programs are kept."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from django.core.management.base import CommandError
from pytest_django import Settings

from dashboard.launcher import processes
from dashboard.management.commands import start

ROOT = Path(__file__).parents[3]
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - never bound


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=rf"Port {port} on 127.0.0.1 is in use.*PORT={port + 1}"):
            start.check_port("127.0.0.1", port)


@pytest.mark.parametrize("port", [0, -1, 70_000])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(CommandError, match=r"PORT must be a number between 1 and 65535"):
        start.check_port("127.0.0.1", port)


def test_an_unknown_host_is_one_sentence() -> None:
    with pytest.raises(CommandError, match=r"Port 8000 on host.invalid cannot be used"):
        start.check_port("host.invalid", 8000)


def test_a_free_port_is_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start.check_port("127.0.0.1", port)


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "FREE_BYTES", 2**62)
    with pytest.raises(CommandError, match=r"MB free.*DATA_DIR"):
        start.check_disk(tmp_path)


def test_other_addresses_need_tls_or_a_word(settings: Settings) -> None:
    with pytest.raises(CommandError, match="ALLOW_PLAIN_HTTP"):
        start.check_address(ANY_ADDRESS)
    settings.ALLOW_PLAIN_HTTP = True
    start.check_address(ANY_ADDRESS)
    settings.ALLOW_PLAIN_HTTP, settings.HTTPS = False, True
    start.check_address(ANY_ADDRESS)


def test_loopback_needs_nothing() -> None:
    start.check_address("127.0.0.1")
    start.check_address("::1")


def test_a_second_start_on_the_same_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    refusal = pytest.raises(CommandError, match=f"already runs.*process {os.getpid()}")
    with start.only_one(tmp_path), refusal, start.only_one(tmp_path):
        raise AssertionError("two at once")
    with start.only_one(tmp_path):
        pass


def test_a_long_path_moves_the_socket_into_a_short_private_folder(settings: Settings, tmp_path: Path) -> None:
    settings.BROKER_SOCKET = tmp_path / ("long" * 30) / "valkey.sock"
    with start.broker_socket() as path:
        assert path is not None
        assert len(str(path)) <= start.SOCKET_LENGTH
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()


def test_a_broker_of_ones_own_starts_no_other(settings: Settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:6379/0"
    with start.broker_socket() as path:
        names = [program.name for program in start.program_list("127.0.0.1", 8000, path)]
    assert path is None
    assert "broker" not in names
    assert {"web", "dispatch", "cpu", "gpu0"} <= set(names)


def test_workers_stop_before_the_dispatcher_and_the_broker_last() -> None:
    programs = start.program_list("127.0.0.1", 8000, Path("valkey.sock"))
    turns = {program.name: program.turn for program in programs}
    assert turns["web"] == turns["cpu"] == turns["gpu0"] < turns["dispatch"] < turns["broker"]


def test_the_broker_sees_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_KEY", "visible")
    assert set(start.broker_program(tmp_path / "valkey.sock").environment) == {"PATH"}


@pytest.mark.parametrize(
    ("visible", "found"), [("GPU-a,GPU-b", ["GPU-a", "GPU-b"]), ("1", ["1"]), ("", [""])]
)
def test_each_visible_gpu_gets_a_node(
    monkeypatch: pytest.MonkeyPatch, visible: str, found: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert start.devices() == found


def test_restarts_come_slower_and_end_after_six() -> None:
    child = processes.Child(processes.Program("p", ["true"]), "")
    assert [child.schedule_restart(now) for now in (0.0, 1.0, 3.0, 6.0, 11.0)] == [0, 1, 2, 4, 8]
    assert child.schedule_restart(20.0) is None


def test_old_exits_are_forgotten() -> None:
    child = processes.Child(processes.Program("p", ["true"]), "")
    assert [child.schedule_restart(now) for now in (0.0, 100.0, 200.0, 300.0, 400.0, 500.0)] == [0] * 6


# The programs below are small shell or Python lines under a real supervisor in a process of its own.

SUPERVISOR = """
import signal, sys
from dashboard.launcher.processes import Program, Programs
from pathlib import Path
marks = Path(sys.argv[1])
programs = [{programs}]
sys.exit(Programs(programs, is_ready=lambda: (marks / "up").exists(), greeting="ready: here").run())
"""
SLEEPER = 'Program("sleeper", ["sh", "-c", "touch up; exec sleep 60"], {"PATH": "/usr/bin:/bin"})'
STUBBORN = (
    'Program("stubborn", ["sh", "-c", "trap : TERM; touch up; while :; do sleep 0.1; done"], '
    '{"PATH": "/usr/bin:/bin"}, grace=GRACE)'
)


@contextmanager
def supervise(folder: Path, programs: str) -> Iterator[subprocess.Popen[str]]:
    script = textwrap.dedent(SUPERVISOR).replace("{programs}", programs)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as supervisor:
        yield supervisor


def wait_for(condition: object, seconds: float = 15.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def gone(family: list[psutil.Process]) -> bool:
    return not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)


def test_sigterm_stops_everything_and_leaves_nothing(tmp_path: Path) -> None:
    with supervise(tmp_path, SLEEPER) as supervisor:
        wait_for((tmp_path / "up").exists)
        family = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.terminate()
        assert supervisor.wait(timeout=5) == 0
        assert family
        assert gone(family)


def test_the_greeting_comes_once(tmp_path: Path) -> None:
    with supervise(tmp_path, SLEEPER) as supervisor:
        wait_for((tmp_path / "up").exists)
        time.sleep(1)
        supervisor.terminate()
        assert supervisor.communicate(timeout=5)[0].count("ready: here") == 1


def test_a_killed_supervisor_takes_its_programs_along(tmp_path: Path) -> None:
    with supervise(tmp_path, SLEEPER) as supervisor:
        wait_for((tmp_path / "up").exists)
        family = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.kill()
        supervisor.wait(timeout=5)
        assert family
        wait_for(lambda: gone(family))


def test_a_program_that_dies_is_started_again(tmp_path: Path) -> None:
    with supervise(tmp_path, SLEEPER) as supervisor:
        wait_for((tmp_path / "up").exists)
        first = psutil.Process(supervisor.pid).children()[0]
        first.kill()
        wait_for(
            lambda: (
                [child.pid for child in psutil.Process(supervisor.pid).children()] not in ([], [first.pid])
            )
        )
        supervisor.terminate()
        assert (
            "sleeper ended with code -9, starting it again at once." in supervisor.communicate(timeout=5)[0]
        )


@pytest.mark.slow
def test_it_gives_up_on_a_program_that_keeps_dying(tmp_path: Path) -> None:
    failing = 'Program("failing", ["sh", "-c", "echo broken pipe dreams; exit 3"], {"PATH": "/usr/bin:/bin"})'
    with supervise(tmp_path, failing) as supervisor:
        output = supervisor.communicate(timeout=40)[0]
        assert supervisor.returncode == 1
        assert "failing ended 6 times within a minute" in output
        assert output.count("broken pipe dreams") == 6


def test_a_program_that_ignores_the_stop_is_killed_after_its_grace(tmp_path: Path) -> None:
    with supervise(tmp_path, STUBBORN.replace("GRACE", "1")) as supervisor:
        wait_for((tmp_path / "up").exists)
        supervisor.terminate()
        assert supervisor.wait(timeout=5) == 0


def test_a_second_signal_kills_at_once_but_an_echo_of_the_first_does_not(tmp_path: Path) -> None:
    with supervise(tmp_path, STUBBORN.replace("GRACE", "60")) as supervisor:
        wait_for((tmp_path / "up").exists)
        supervisor.send_signal(signal.SIGINT)
        supervisor.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        assert supervisor.poll() is None
        supervisor.send_signal(signal.SIGINT)
        assert supervisor.wait(timeout=5) == 0


def test_output_carries_the_programs_name(tmp_path: Path) -> None:
    talker = (
        'Program("talker", ["sh", "-c", "echo hello; touch up; exec sleep 60"], {"PATH": "/usr/bin:/bin"})'
    )
    with supervise(tmp_path, talker) as supervisor:
        wait_for((tmp_path / "up").exists)
        supervisor.terminate()
        assert "talker     | hello" in supervisor.communicate(timeout=5)[0]
