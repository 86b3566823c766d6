"""Runs a command beside a private PostgreSQL server that is gone afterwards.

    python -m tests.servers python -m pytest -q -m jobs

The command finds it in TEST_DATABASE_URL, and the tests then use Debian's Valkey or Redis as well, instead of
the embedded one. Servers listen on loopback, on ports and in folders of their own, and die with this process.
A machine without the programs runs nothing and says so; where CI is set, that is an error.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

BROKERS = ("valkey-server", "redis-server")
READY_SECONDS = 30
# PostgreSQL refuses to run as root; Debian's package brings this account along.
ACCOUNT = "postgres"
# A test's data need not survive a power cut.
HASTY = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class Missing(Exception):
    """A program that the servers need is not on this machine."""


def main(command: list[str]) -> int:
    """The command's exit status."""
    signal.signal(signal.SIGTERM, _end)
    if missing := find_missing_program():
        print(f"Not run on PostgreSQL: {missing}", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    with tempfile.TemporaryDirectory(prefix="graftworks-servers-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        with postgresql(Path(name) / "postgresql") as url:
            environment = {**os.environ, "TEST_DATABASE_URL": url}
            return subprocess.run(command, env=environment, check=False).returncode


def find_missing_program() -> str:
    """Why the servers cannot be started here, or ""."""
    try:
        _newest_postgresql()
        broker_program()
        if os.getuid() == 0:
            _account()
    except Missing as missing:
        return str(missing)
    return ""


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(1)


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """The address of a fresh database in a fresh cluster."""
    programs = _newest_postgresql()
    folder.mkdir()
    user = _other_account(folder)
    password = secrets.token_hex(16)
    secret = folder / "password"
    secret.write_text(password)
    if user:
        shutil.chown(secret, *user)
    data, port = folder / "data", free_port()
    begin = [programs / "initdb", "-D", data, "-U", "graftworks", "--pwfile", secret, "-A", "scram-sha-256"]
    initdb = _as(user, [*map(str, begin), "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"])
    made = subprocess.run(initdb, cwd=folder, capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(f"initdb failed: {made.stderr}")
    serve = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", ""]
    options = [part for option in (*HASTY, "max_connections=200") for part in ("-c", option)]
    # SIGINT is PostgreSQL's quick and orderly end.
    with _running(_as(user, [*serve, *options], signal.SIGINT), folder, port, signal.SIGINT):
        url = f"postgres://graftworks:{password}@127.0.0.1:{port}"
        _create_database(f"{url}/postgres")
        yield f"{url}/graftworks"


@contextlib.contextmanager
def broker(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Debian's Valkey or Redis on that port, without any data."""
    folder.mkdir(exist_ok=True)
    serve = [broker_program(), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    with _running(_as(None, serve), folder, port, signal.SIGTERM) as process:
        yield process


def broker_program() -> str:
    """Which of the two is installed."""
    program = next((found for name in BROKERS if (found := shutil.which(name))), None)
    if program is None:
        raise Missing("there is no valkey-server and no redis-server. On Debian: apt install valkey-server")
    return program


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _newest_postgresql() -> Path:
    """Debian keeps the server's programs away from PATH, one folder per version."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    on_path = shutil.which("initdb")
    if on_path:
        found.append(Path(on_path).resolve().parent)
    if not found:
        raise Missing("there is no PostgreSQL server. On Debian: apt install postgresql")
    return max(found, key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0)


def _other_account(folder: Path) -> tuple[int, int] | None:
    """Root hands the folder to PostgreSQL's account; anybody else runs the server as themselves."""
    if os.getuid():
        return None
    account = _account()
    os.chown(folder, account.pw_uid, account.pw_gid)
    return account.pw_uid, account.pw_gid


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError as error:
        raise Missing(f"PostgreSQL does not run as root, and there is no account {ACCOUNT}.") from error


def _as(user: tuple[int, int] | None, command: list[str], orphaned: int = signal.SIGTERM) -> list[str]:
    """The command under another account, with a signal for when this process dies."""
    setpriv = ["setpriv", "--pdeathsig", signal.Signals(orphaned).name.removeprefix("SIG")]
    if user:
        setpriv += ["--reuid", str(user[0]), "--regid", str(user[1]), "--clear-groups"]
    return [*setpriv, *command]


@contextlib.contextmanager
def _running(command: list[str], folder: Path, port: int, last: int) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        _wait_until_it_listens(process, port, folder / "log")
        yield process
    finally:
        process.send_signal(last)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"A server did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _create_database(url: str) -> None:
    import psycopg

    for _try in range(100):
        # It listens a moment before it lets anybody in.
        with contextlib.suppress(psycopg.OperationalError):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE graftworks")
            return
        time.sleep(0.1)
    raise RuntimeError("PostgreSQL started and answers nobody.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
