"""README stays true: every setting, management command and public route is named there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def settings_read() -> list[str]:
    """Names that settings.py asks the environment for."""
    names = []
    for node in ast.walk(ast.parse((ROOT / "dashboard" / "settings.py").read_text())):
        is_env = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if is_env and isinstance(node.func.value, ast.Name) and node.func.value.id == "env":
            first = node.args[0]
            names.append(first.value if isinstance(first, ast.Constant) else ast.unparse(first))
    return sorted(set(names))


def commands() -> list[str]:
    folder = ROOT / "dashboard" / "management" / "commands"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", settings_read())
def test_readme_names_the_setting(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("name", commands())
def test_readme_names_the_command(name: str) -> None:
    assert f"manage.py {name}" in README


def test_readme_names_no_setting_that_is_not_read() -> None:
    section = README.split("## Configuration")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `([A-Z_]+)`", section, re.MULTILINE))
    respected = set(re.findall(r"^\| `((?:HF|CUDA|OMP|SSL|HTTPS|NO)_[A-Z_]+)`", section, re.MULTILINE))
    assert listed - respected == set(settings_read())


def test_readme_names_every_make_target() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    missing = [target for target in targets if f"make {target}" not in README]
    assert not missing
