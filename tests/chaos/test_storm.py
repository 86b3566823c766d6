"""The kill storm in short; `make proof` runs the long one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import servers

ROOT = Path(__file__).parents[2]
# Longer than a lease, so that a paused supervisor wakes to find its job with somebody else.
PAUSE = ("--pauses", "1", "--pause-seconds", "100")
SHORT = ("--jobs", "20", "--kills", "10", *PAUSE, "--minutes", "10")
# Its dice strike each role, pause a supervisor, stop trainings in all three ways, start jobs of several arms.
SEED = "2687"


@pytest.mark.slow
def test_a_short_storm_loses_and_doubles_nothing(measured: Callable[[str], None]) -> None:
    """On PostgreSQL and Debian's broker where they are installed, as the other tests use SQLite."""
    beside = [] if servers.what_is_missing() else [sys.executable, "-m", "tests.servers"]
    command = [*beside, sys.executable, "-m", "tests.chaos", *SHORT, "--seed", SEED]
    stormed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    # Without how far it was each half minute.
    measured(stormed.stdout.partition("\n\n")[2].strip())
    assert stormed.returncode == 0, stormed.stdout[-6000:] + stormed.stderr[-3000:]
