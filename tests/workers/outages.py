"""Outages of the test database: a locked file, or a server behind a proxy."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from django.db import connection

from tests.proxy import Proxy

HOLD = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
"""
Switch = tuple[Callable[[], None], Callable[[], None]]
_timers: list[threading.Timer] = []


@contextlib.contextmanager
def breakable_database() -> Iterator[Switch]:
    """Yield two functions for any thread: the first starts an outage, the second ends it."""
    before = {**connection.settings_dict, "OPTIONS": dict(connection.settings_dict["OPTIONS"])}
    connection.close()
    with _lock() if connection.vendor == "sqlite" else _proxy() as switch:
        try:
            yield switch
        finally:
            _cancel_timers()
            switch[1]()
            connection.close()
            connection.settings_dict.update(before)


@contextlib.contextmanager
def _lock() -> Iterator[Switch]:
    """Let another process hold the lock for longer than the connection waits for it."""
    connection.settings_dict["OPTIONS"] = {**connection.settings_dict["OPTIONS"], "timeout": 0.3}
    holders: list[subprocess.Popen[bytes]] = []
    # On a busy machine the end may be due before the start is through.
    turn = threading.Lock()

    def start() -> None:
        with turn:
            command = [sys.executable, "-c", HOLD, str(connection.settings_dict["NAME"])]
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            holders.append(holder)
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"

    def end() -> None:
        with turn:
            while holders:
                holder = holders.pop()
                holder.communicate(b"\n", timeout=10)

    yield start, end


@contextlib.contextmanager
def _proxy() -> Iterator[Switch]:
    with Proxy(f"{connection.settings_dict['HOST']}:{connection.settings_dict['PORT']}") as proxy:
        connection.settings_dict.update(HOST="127.0.0.1", PORT=proxy.port)
        yield proxy.refuse, proxy.heal


def call_later(seconds: float, act: Callable[[], None]) -> None:
    """Call a function after some time, unless the outages are over by then."""
    timer = threading.Timer(seconds, act)
    timer.start()
    _timers.append(timer)


def _cancel_timers() -> None:
    """Cancel the calls that are still due: they would hit the next test."""
    while _timers:
        timer = _timers.pop()
        timer.cancel()
        timer.join()
