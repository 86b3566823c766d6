"""Beyond the import contracts of `make check`: what is really in memory, and packages without a layer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


# Torch would add 400 MB to every process, SciPy 28 to 78 MB and up to a second.
HEAVY = ("torch", "transformers", "peft", "tokenizers", "scipy", "workers.engine")
IMPORTED = """
import django, sys
django.setup()
import dashboard.urls, dashboard.asgi, workers.tasks
print(*sys.modules)
"""


def test_web_and_worker_processes_import_no_heavy_library() -> None:
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "dashboard.settings"}
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not set(HEAVY) & set(done.stdout.split())


def test_every_package_of_the_workers_has_a_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {module for layer in contracts[0]["layers"] for module in re.findall(r"workers\.(\w+)", layer)}
    there = {path.stem for path in (ROOT / "workers").iterdir() if path.stem.isidentifier()}
    assert there - named <= {"__init__", "__pycache__", "celery", "README"}
