"""Which tests must meet in one process when several share them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sharing import scope_of

TEST = """
import os
import pytest

@pytest.mark.parametrize("number", range(6))
def test_one(number):
    print(os.environ["PYTEST_XDIST_WORKER"], "ran", __file__)
"""


def test_browser_tests_share_an_installation_and_so_a_process() -> None:
    one, other = "tests/e2e/test_study.py::test_a", "tests/e2e/test_bad_input.py::test_b[/x/]"
    assert scope_of(one) == scope_of(other)


def test_tests_that_start_installations_of_their_own_go_to_any_process() -> None:
    one, other = (f"tests/e2e/test_start_command.py::test_{name}" for name in ("one", "other"))
    assert len({scope_of(one), scope_of(other), scope_of("tests/e2e/test_study.py::test_a")}) == 3


def test_every_other_test_goes_to_any_process() -> None:
    one, other = (f"tests/engine/test_death.py::test_it[{name}]" for name in ("a-1", "b-1"))
    assert scope_of(one) != scope_of(other)


def test_pytest_shares_them_like_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("e2e/test_a.py", "e2e/test_b.py", "engine/test_c.py"):
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEST)
    options = [
        "-p",
        "xdist",
        "-p",
        "tests.sharing",
        "-n",
        "2",
        "--dist",
        "loadscope",
        "--rootdir",
        str(tmp_path),
    ]
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "-rP", *options, str(tmp_path / "tests")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ran = {tuple(line.split(" ran ")) for line in said.splitlines() if " ran " in line}
    browser = {worker for worker, path in ran if "/e2e/" in path}
    assert len(browser) == 1, "all of them in one process"
    assert {worker for worker, path in ran if "/engine/" in path} - browser, (
        "and others meanwhile in the other"
    )
