"""What differs on a CUDA device, as far as a machine without one can show it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_no_operation_reads_tensors_of_two_devices(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "tests.engine.training.card_steps", str(tiny_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
