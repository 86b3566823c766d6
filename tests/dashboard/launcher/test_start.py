"""`manage.py start`: its checks, its programs, and how the launcher restarts and stops them."""

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


def test_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=rf"Port {port} on 127.0.0.1 is in use.*PORT={port + 1}"):
            start.listen("127.0.0.1", port)
    start.listen("127.0.0.1", port).close()


@pytest.mark.parametrize("port", [0, 70_000])
def test_invalid_port_is_refused(port: int) -> None:
    with pytest.raises(CommandError, match=r"PORT must be a number between 1 and 65535"):
        start.listen("127.0.0.1", port)


def test_unknown_host_is_refused() -> None:
    with pytest.raises(CommandError, match=r"Port 8000 on host.invalid cannot be used"):
        start.listen("host.invalid", 8000)


def test_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "FREE_BYTES", 2**62)
    with pytest.raises(CommandError, match=r"MB free.*DATA_DIR"):
        start.check_disk(tmp_path)


def test_only_loopback_needs_no_tls(settings: Settings) -> None:
    start.check_address("127.0.0.1")
    start.check_address("::1")
    with pytest.raises(CommandError, match="ALLOW_PLAIN_HTTP"):
        start.check_address(ANY_ADDRESS)
    settings.ALLOW_PLAIN_HTTP = True
    start.check_address(ANY_ADDRESS)
    settings.ALLOW_PLAIN_HTTP, settings.HTTPS = False, True
    start.check_address(ANY_ADDRESS)


def test_second_start_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    refusal = pytest.raises(CommandError, match=f"already runs.*process {os.getpid()}")
    with start.start_lock(tmp_path), refusal, start.start_lock(tmp_path):
        raise AssertionError("two at once")
    with start.start_lock(tmp_path):
        pass


def test_long_path_moves_socket_to_short_private_folder(settings: Settings, tmp_path: Path) -> None:
    settings.BROKER_SOCKET = tmp_path / ("long" * 30) / "valkey.sock"
    with start.broker_socket() as path:
        assert path is not None
        assert len(str(path)) <= start.SOCKET_LENGTH
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()


def test_external_broker_starts_no_embedded_one(settings: Settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:6379/0"
    with start.broker_socket() as path, socket.socket() as listener:
        names = [program.name for program in start.program_list(listener, path)]
    assert path is None
    assert "broker" not in names
    assert {"web0", "dispatch", "cpu", "gpu0"} <= set(names)


def test_as_many_web_processes_as_set_listen_on_one_socket(settings: Settings) -> None:
    settings.WEB_CONCURRENCY = 3
    with socket.socket() as listener:
        programs = start.program_list(listener, None)
        assert [program.name for program in programs if program.listener is listener] == [
            "web0",
            "web1",
            "web2",
        ]


def test_workers_stop_before_the_dispatcher_and_the_broker_last() -> None:
    with socket.socket() as listener:
        programs = start.program_list(listener, Path("valkey.sock"))
    order = {program.name: program.stop_order for program in programs}
    assert order["web0"] == order["cpu"] == order["gpu0"] < order["dispatch"] < order["broker"]


def test_broker_gets_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_KEY", "visible")
    assert set(start.broker_program(tmp_path / "valkey.sock").environment) == {"PATH"}


@pytest.mark.parametrize(
    ("visible", "found"), [("GPU-a,GPU-b", ["GPU-a", "GPU-b"]), ("1", ["1"]), ("", [""])]
)
def test_each_visible_gpu_gets_a_worker(
    monkeypatch: pytest.MonkeyPatch, visible: str, found: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert start.devices() == found


@pytest.mark.parametrize(("visible", "processes"), [("", ["3"]), ("0,1", ["1", "1"])])
def test_a_cpu_trains_as_many_at_once_as_set_and_a_gpu_one(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, visible: str, processes: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings.CPU_TRAININGS = 3
    with socket.socket() as listener:
        programs = start.program_list(listener, None)
    options = [program.run.args[0] for program in programs if "gpu" in program.name]  # type: ignore[union-attr]
    assert [own[own.index("-c") + 1] for own in options] == processes


def test_restarts_slow_down_and_end_after_six() -> None:
    child = processes.Child(processes.Program("p", ["true"]), "")
    assert [child.schedule_restart(now) for now in (0.0, 1.0, 3.0, 6.0, 11.0)] == [0, 1, 2, 4, 8]
    assert child.schedule_restart(20.0) is None


def test_exits_older_than_a_minute_do_not_count() -> None:
    child = processes.Child(processes.Program("p", ["true"]), "")
    assert [child.schedule_restart(now) for now in (0.0, 100.0, 200.0, 300.0, 400.0, 500.0)] == [0] * 6


# The programs below are shell scripts and functions under a real launcher process.

SUPERVISOR = """
import os, signal, socket, sys, time
from dashboard.launcher import processes
from dashboard.launcher.processes import Program, Programs
from pathlib import Path
processes.EXITS_ALLOWED = 3
marks = Path(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
def nap():
    print("hello from", Path("/proc/self/comm").read_text().strip(), os.environ["NAME"], flush=True)
    mine = listener.fileno() >= 0
    (marks / f"{os.environ['NAME']}-{'listens' if mine else 'deaf'}").touch()
    (marks / "up").touch()
    time.sleep(60)
programs = [{programs}]
sys.exit(Programs(programs, is_ready=lambda: (marks / "up").exists(), greeting="ready: here").run())
"""
SLEEPER = 'Program("sleeper", ["sh", "-c", "touch up; exec sleep 60"], {"PATH": "/usr/bin:/bin"})'
STUBBORN = (
    'Program("stubborn", ["sh", "-c", "trap : TERM; touch up; while :; do sleep 0.1; done"], '
    '{"PATH": "/usr/bin:/bin"}, grace=GRACE)'
)


NAPPER = 'Program("napper", nap, {"NAME": "small"})'


@contextmanager
def supervise(folder: Path, programs: str) -> Iterator[subprocess.Popen[str]]:
    script = textwrap.dedent(SUPERVISOR).replace("{programs}", programs)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as supervisor:
        yield supervisor


def wait_for(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def gone(family: list[psutil.Process]) -> bool:
    return not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)


@pytest.mark.parametrize("program", [SLEEPER, NAPPER])
def test_sigterm_stops_all_processes(tmp_path: Path, program: str) -> None:
    with supervise(tmp_path, program) as supervisor:
        wait_for((tmp_path / "up").exists)
        family = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.terminate()
        assert supervisor.wait(timeout=60) == 0
        assert family
        assert gone(family)


@pytest.mark.parametrize("program", [SLEEPER, NAPPER])
def test_programs_end_with_killed_launcher(tmp_path: Path, program: str) -> None:
    with supervise(tmp_path, program) as supervisor:
        wait_for((tmp_path / "up").exists)
        family = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.kill()
        supervisor.wait(timeout=60)
        assert family
        wait_for(lambda: gone(family))


def test_killed_program_is_restarted(tmp_path: Path) -> None:
    with supervise(tmp_path, SLEEPER) as supervisor:
        wait_for((tmp_path / "up").exists)
        first = psutil.Process(supervisor.pid).children()[0]
        first.kill()
        wait_for(
            lambda: (
                [child.pid for child in psutil.Process(supervisor.pid).children()] not in ([], [first.pid])
            )
        )
        time.sleep(1)
        supervisor.terminate()
        output = supervisor.communicate(timeout=60)[0]
        assert "graftworks | sleeper ended with code -9, restarting at once." in output
        assert output.count("ready: here") == 1


def test_a_fork_has_its_name_and_environment_and_no_socket_of_another(tmp_path: Path) -> None:
    programs = f'{NAPPER}, Program("server", nap, {{"NAME": "large"}}, listener=listener)'
    with supervise(tmp_path, programs) as supervisor:
        wait_for((tmp_path / "small-deaf").exists)
        wait_for((tmp_path / "large-listens").exists)
        supervisor.terminate()
        output = supervisor.communicate(timeout=60)[0]
        assert "napper     | hello from gw-napper small" in output
        assert "server     | hello from gw-server large" in output


def test_launcher_gives_up_after_too_many_exits(tmp_path: Path) -> None:
    failing = 'Program("failing", ["sh", "-c", "echo broken pipe dreams; exit 3"], {"PATH": "/usr/bin:/bin"})'
    with supervise(tmp_path, failing) as supervisor:
        output = supervisor.communicate(timeout=60)[0]
        assert supervisor.returncode == 1
        assert "failing ended 3 times within a minute" in output
        assert output.count("failing    | broken pipe dreams") == 3


def test_program_that_ignores_sigterm_is_killed_after_grace(tmp_path: Path) -> None:
    with supervise(tmp_path, STUBBORN.replace("GRACE", "1")) as supervisor:
        wait_for((tmp_path / "up").exists)
        supervisor.terminate()
        assert supervisor.wait(timeout=60) == 0


def test_second_signal_kills_at_once(tmp_path: Path) -> None:
    with supervise(tmp_path, STUBBORN.replace("GRACE", "60")) as supervisor:
        wait_for((tmp_path / "up").exists)
        supervisor.send_signal(signal.SIGINT)
        supervisor.send_signal(signal.SIGTERM)  # within a second, it repeats the first
        time.sleep(1.5)
        assert supervisor.poll() is None
        supervisor.send_signal(signal.SIGINT)
        assert supervisor.wait(timeout=60) == 0
