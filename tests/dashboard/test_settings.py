"""Settings that are checked when a process starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def read_judge_key(folder: Path, key: str) -> subprocess.CompletedProcess[str]:
    """Load the settings in a process of their own and print the judge's key."""
    command = [sys.executable, "-c", "from dashboard import settings; print(settings.JUDGE.key)"]
    environment = {**os.environ, "DATA_DIR": str(folder), "JUDGE_API_KEY": key}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_judge_key_is_stripped_and_a_bad_one_refused(tmp_path: Path) -> None:
    assert read_judge_key(tmp_path, " sk-1f9 \n").stdout == "sk-1f9\n"
    refused = read_judge_key(tmp_path, "sk-1f9\nzz7q")
    assert refused.returncode == 1
    assert "ImproperlyConfigured: JUDGE_API_KEY" in refused.stderr
    assert "zz7q" not in refused.stderr
