"""A database that is really away for a while: a locked file, or a server behind a closed proxy."""

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
_to_come: list[threading.Timer] = []


@contextlib.contextmanager
def breakable() -> Iterator[Switch]:
    """Two functions for any thread: the first takes the database away, the second brings it back."""
    before = {**connection.settings_dict, "OPTIONS": dict(connection.settings_dict["OPTIONS"])}
    connection.close()
    with _lock() if connection.vendor == "sqlite" else _proxy() as switch:
        try:
            yield switch
        finally:
            _call_off()
            switch[1]()
            connection.close()
            connection.settings_dict.update(before)


@contextlib.contextmanager
def _lock() -> Iterator[Switch]:
    """Another process holds the write lock, longer than anybody here waits for it."""
    connection.settings_dict["OPTIONS"] = {**connection.settings_dict["OPTIONS"], "timeout": 0.3}
    holders: list[subprocess.Popen[bytes]] = []

    def away() -> None:
        command = [sys.executable, "-c", HOLD, str(connection.settings_dict["NAME"])]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holders.append(holder)

    def back() -> None:
        while holders:
            holder = holders.pop()
            holder.communicate(b"\n", timeout=10)

    yield away, back


@contextlib.contextmanager
def _proxy() -> Iterator[Switch]:
    with Proxy(f"{connection.settings_dict['HOST']}:{connection.settings_dict['PORT']}") as proxy:
        connection.settings_dict.update(HOST="127.0.0.1", PORT=proxy.port)
        yield proxy.refuse, proxy.heal


def later(seconds: float, act: Callable[[], None]) -> None:
    """Do it after some time, unless the database is whole for good by then."""
    timer = threading.Timer(seconds, act)
    timer.start()
    _to_come.append(timer)


def _call_off() -> None:
    """What is still to come would hit the next test, and hold up the end of all of them."""
    while _to_come:
        timer = _to_come.pop()
        timer.cancel()
        timer.join()
