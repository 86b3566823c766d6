"""Run a command beside a temporary PostgreSQL server.

    python -m tests.servers python -m pytest -q -m jobs

TEST_DATABASE_URL names the server, and the tests then use Debian's Valkey or Redis as well, instead of the
embedded one. Servers listen on loopback, have their own ports and folders, and die with this process. Without
the programs the command is not run; that is an error if CI is set.
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

BROKERS = ("valkey-server", "redis-server")
READY_SECONDS = 30
# PostgreSQL refuses to run as root; Debian's package creates this account.
ACCOUNT = "postgres"
# Test data need not survive a power failure.
UNSAFE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class MissingProgram(Exception):
    """A program of the servers is not installed."""


def main(command: list[str]) -> int:
    """Run the command and return its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if missing := find_missing_program():
        print(f"Not run on PostgreSQL: {missing}", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    with tempfile.TemporaryDirectory(prefix="graftworks-servers-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        with postgresql(Path(name) / "postgresql") as url:
            environment = {**os.environ, "TEST_DATABASE_URL": url}
            return subprocess.run(command, env=environment, check=False).returncode


def find_missing_program() -> str:
    """Return why the servers cannot be started here; "" if they can."""
    try:
        _newest_postgresql()
        broker_program()
        if os.getuid() == 0:
            _account()
    except MissingProgram as error:
        return str(error)
    return ""


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Yield the URL of an empty database in a new cluster."""
    programs = _newest_postgresql()
    folder.mkdir()
    user = _change_owner(folder)
    password = secrets.token_hex(16)
    password_file = folder / "password"
    password_file.write_text(password)
    if user:
        shutil.chown(password_file, *user)
    data, port = folder / "data", free_port()
    initdb = [str(programs / "initdb"), "-D", str(data), "-U", "graftworks", "-A", "scram-sha-256"]
    initdb += ["--pwfile", str(password_file), "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
    done = subprocess.run(_as(user, initdb), cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"initdb failed: {done.stderr}")
    serve = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", ""]
    options = [part for option in (*UNSAFE, "max_connections=200") for part in ("-c", option)]
    # SIGINT is PostgreSQL's fast shutdown.
    with _run_server(_as(user, [*serve, *options], signal.SIGINT), folder, port, signal.SIGINT):
        url = f"postgres://graftworks:{password}@127.0.0.1:{port}"
        _create_database(f"{url}/postgres")
        yield f"{url}/graftworks"


@contextlib.contextmanager
def broker(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run Debian's Valkey or Redis without data on that port."""
    folder.mkdir(exist_ok=True)
    serve = [broker_program(), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    with _run_server(_as(None, serve), folder, port, signal.SIGTERM) as process:
        yield process


def broker_program() -> str:
    """Return the installed one of the two."""
    program = next((found for name in BROKERS if (found := shutil.which(name))), None)
    if program is None:
        raise MissingProgram(
            "there is no valkey-server and no redis-server. On Debian: apt install valkey-server"
        )
    return program


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _newest_postgresql() -> Path:
    """Return the folder of the programs: Debian installs one per version, outside of PATH."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    on_path = shutil.which("initdb")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    if not folders:
        raise MissingProgram("there is no PostgreSQL server. On Debian: apt install postgresql")
    return max(folders, key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0)


def _change_owner(folder: Path) -> tuple[int, int] | None:
    """Give the folder to PostgreSQL's account and return its ids; None without root's rights."""
    if os.getuid():
        return None
    account = _account()
    os.chown(folder, account.pw_uid, account.pw_gid)
    return account.pw_uid, account.pw_gid


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError as error:
        raise MissingProgram(
            f"PostgreSQL does not run as root, and there is no account {ACCOUNT}."
        ) from error


def _as(user: tuple[int, int] | None, command: list[str], orphaned: int = signal.SIGTERM) -> list[str]:
    """Return the command for another account, to be sent a signal when this process dies."""
    setpriv = ["setpriv", "--pdeathsig", signal.Signals(orphaned).name.removeprefix("SIG")]
    if user:
        setpriv += ["--reuid", str(user[0]), "--regid", str(user[1]), "--clear-groups"]
    return [*setpriv, *command]


@contextlib.contextmanager
def _run_server(command: list[str], folder: Path, port: int, last: int) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        _wait_for_port(process, port, folder / "log")
        yield process
    finally:
        process.send_signal(last)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
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
        # The port is open before the server accepts logins.
        with contextlib.suppress(psycopg.OperationalError):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE DATABASE graftworks")
            return
        time.sleep(0.1)
    raise RuntimeError("PostgreSQL started and accepts no login.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
