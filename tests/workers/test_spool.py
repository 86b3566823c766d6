"""Lines wait in order, wherever they lie."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from workers.spool import Spool


def taken(spool: Spool) -> list[bytes]:
    """Everything that it held."""
    lines = []
    while (line := spool.first()) is not None:
        lines.append(line)
        spool.drop()
    spool.discard()
    return lines


def test_what_memory_does_not_hold_waits_on_disk_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, memory_bytes=100)
    lines = [b"line %d\n" % number for number in range(500)]
    for line in lines:
        spool.put(line)
    assert taken(spool) == lines
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_it_goes_on_in_order_when_lines_come_and_go(tmp_path: Path) -> None:
    spool, seen = Spool(tmp_path, memory_bytes=50), []
    for number in range(300):
        spool.put(b"%d\n" % number)
        if number % 3:
            seen.append(spool.first())
            spool.drop()
    assert [*seen, *taken(spool)] == [b"%d\n" % number for number in range(300)]


def test_a_disk_that_refuses_costs_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, memory_bytes=20)
    for number in range(20):
        spool.put(b"%d\n" % number)
    with monkeypatch.context() as broken:
        broken.setattr(spool, "_to_disk", lambda _line: False)
        spool.put(b"20\n")
    spool.put(b"21\n")
    assert taken(spool) == [b"%d\n" % number for number in range(22)]


def test_it_waits_for_a_line_of_another_thread(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    threading.Timer(0.05, spool.put, [b"here\n"]).start()
    spool.wait(10)
    assert spool.first() == b"here\n"


def test_an_empty_line_and_an_endless_one_stay_what_they_are(tmp_path: Path) -> None:
    lines = [b"", os.urandom(70_000), b"\n", b"no end"]
    spool = Spool(tmp_path, memory_bytes=10)
    for line in lines:
        spool.put(line)
    assert taken(spool) == lines
