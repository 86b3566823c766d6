"""The ground truth of the layers: what is really in memory, and what imports with the web blocked."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_web_and_worker_processes_run_without_torch() -> None:
    code = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "dashboard.settings"
import django
django.setup()
import dashboard.urls, dashboard.asgi, workers.tasks
heavy = {"torch", "transformers", "peft", "tokenizers", "scipy.stats", "scipy.optimize", "workers.engine"} & set(sys.modules)
assert not heavy, heavy
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_the_engine_runs_without_django_and_celery() -> None:
    code = """
import sys
sys.modules["django"] = sys.modules["celery"] = sys.modules["dashboard"] = None
import workers.engine.__main__, workers.engine.training.train, workers.engine.evaluation.evaluate
import workers.engine.importing.run_import, workers.engine.base_models.inspect_model
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_imports_point_down_the_layers() -> None:
    command = str(Path(sys.executable).parent / "lint-imports")
    result = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout


def test_every_package_of_the_workers_has_a_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {module for layer in contracts[0]["layers"] for module in re.findall(r"workers\.(\w+)", layer)}
    there = {path.stem for path in (ROOT / "workers").iterdir() if path.stem.isidentifier()}
    assert there - named <= {"__init__", "__pycache__", "celery", "README"}
