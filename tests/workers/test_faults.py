"""Points stay silent until the environment names one of them."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers import faults

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The environment, empty at first and put back afterwards; counts begin anew."""
    monkeypatch.delenv(faults.ASKED, raising=False)
    monkeypatch.delenv(faults.ONCE, raising=False)
    monkeypatch.setattr(faults, "_plan", (("", ""), []))
    return monkeypatch


def test_nothing_happens_unless_it_is_asked_for(ask: pytest.MonkeyPatch) -> None:
    for name in faults.POINTS:
        faults.point(name)


def test_a_write_fails_as_the_system_would_let_it_fail(ask: pytest.MonkeyPatch) -> None:
    ask.setenv(faults.ASKED, "checkpoint.rename=ENOSPC")
    faults.point("checkpoint.sync_file")
    for _time in range(2):
        with pytest.raises(OSError, match="No space left") as caught:
            faults.point("checkpoint.rename")
        assert caught.value.errno == errno.ENOSPC


def test_it_counts_to_the_time_that_is_meant(ask: pytest.MonkeyPatch) -> None:
    ask.setenv(faults.ASKED, "save.rename=EIO@2; save.rename=EIO@3; publish.rename=EIO@1")
    faults.point("save.rename")
    for _time in range(2):
        with pytest.raises(OSError):
            faults.point("save.rename")
    faults.point("save.rename")
    with pytest.raises(OSError):
        faults.point("publish.rename")


def test_with_a_marker_folder_it_happens_once(ask: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask.setenv(faults.ASKED, "save.rename=EIO")
    ask.setenv(faults.ONCE, str(tmp_path / "once"))
    with pytest.raises(OSError):
        faults.point("save.rename")
    faults.point("save.rename")
    ask.setattr(faults, "_plan", (("", ""), []))  # as in another process
    faults.point("save.rename")


def test_a_kill_ends_the_process_at_once(tmp_path: Path) -> None:
    code = "from workers import faults; faults.point('save.rename'); print('alive')"
    environment = os.environ | {faults.ASKED: "save.rename=kill", faults.ONCE: str(tmp_path)}
    for status, said in ((-signal.SIGKILL, b""), (0, b"alive\n")):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True)
        assert (done.returncode, done.stdout) == (status, said)


def test_a_pause_takes_its_time(ask: pytest.MonkeyPatch) -> None:
    ask.setenv(faults.ASKED, "save.rename=pause:0.05")
    began = time.monotonic()
    faults.point("save.rename")
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize("text", ["save.rename", "nowhere=kill", "save.rename=EVERYTHING", "save.rename=kil"])
def test_a_wish_that_cannot_be_read_is_refused(ask: pytest.MonkeyPatch, text: str) -> None:
    ask.setenv(faults.ASKED, text)
    with pytest.raises(ValueError, match=re.escape(text.partition("=")[2] or text)):
        faults.point("save.sync_file")


def test_a_point_that_is_not_listed_is_refused() -> None:
    with pytest.raises(AssertionError, match="nowhere"):
        faults.point("nowhere")


def test_every_listed_point_stands_in_the_code() -> None:
    code = "".join(path.read_text() for path in (ROOT / "workers").rglob("*.py") if path.name != "faults.py")
    used = set(re.findall(r'faults\.point\("([\w.]+)"\)', code))
    assert used == faults.POINTS
