"""A short storm; `make proof` runs the long ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import servers

ROOT = Path(__file__).parents[2]
SHORT = ("--jobs", "3", "--kills", "6", "--pauses", "0", "--minutes", "7", "--sweep")
# Kills each role, stops a training, starts a job of several arms.
SEED = "382786"


@pytest.mark.slow
def test_short_storm_violates_no_invariant(tiny_folder: Path, measured: Callable[[str], None]) -> None:
    """Use PostgreSQL and Debian's broker where they are installed: the other tests use SQLite."""
    wrapper = [] if servers.find_missing_program() else [sys.executable, "-m", "tests.servers"]
    command = [*wrapper, sys.executable, "-m", "tests.chaos", *SHORT, "--seed", SEED]
    command += ["--model", str(tiny_folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    # Without the progress lines.
    measured(done.stdout.partition("\n\n")[2].strip())
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
