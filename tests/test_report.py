"""What `make test` says: what was measured, and at the end what failed and how to run it alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import __main__ as suite
from tests import servers

TESTS = """
import pytest

def test_it_measures(measured):
    measured("4 of 5 in 3 s")

@pytest.mark.parametrize("who", ["ed@example.org"])
def test_it_fails(who):
    assert who == "mara"

@pytest.fixture
def broken():
    raise OSError("no such thing")

def test_it_cannot_begin(broken):
    pass
"""


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> suite.Part:
    """Three tests, two of which fail."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "test_three.py").write_text(TESTS)
    options = (
        "-p",
        "xdist",
        "-p",
        "tests.report",
        "--rootdir",
        str(tmp_path),
        "-n",
        "1",
        "--dist",
        "loadgroup",
    )
    command = (sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", *options, str(tmp_path))
    return suite.Part("three", "three tests", 1, command)


def test_a_part_tells_what_it_measured_and_which_tests_failed(
    part: suite.Part, capfd: pytest.CaptureFixture[str]
) -> None:
    status, failed = suite.run(part)
    assert status == 1
    assert failed == ["test_three.py::test_it_fails[ed@example.org]", "test_three.py::test_it_cannot_begin"]
    said = capfd.readouterr().out
    assert said.count("4 of 5 in 3 s") == 1
    assert "Part three took " in said


def test_every_failure_is_named_again_at_the_end_of_all_parts(
    part: suite.Part, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = suite.Part("fine", "nothing at all", 1, (sys.executable, "-c", ""))
    monkeypatch.setattr(suite, "PARTS", (part, fine))
    monkeypatch.setattr(servers, "what_is_missing", lambda: "there is no PostgreSQL server.")
    assert suite.main([]) == 1
    end = capfd.readouterr().out.partition("== All of it took")[2]
    assert (
        "    test_three.py::test_it_fails[ed@example.org]\n    test_three.py::test_it_cannot_begin\n" in end
    )
    assert (
        "To run one alone: .venv/bin/python -m pytest 'test_three.py::test_it_fails[ed@example.org]'" in end
    )
    assert "Not run on PostgreSQL: there is no PostgreSQL server." in end
    assert suite.main(["fine"]) == 0
    assert "Everything passed." in capfd.readouterr().out


def test_a_part_that_breaks_without_a_test_is_a_failure() -> None:
    assert "the part itself, see above" in suite.summary({"quick": []})


def test_a_test_of_jobs_is_run_alone_beside_the_servers() -> None:
    said = suite.summary({"jobs": ["tests/dashboard/test_job.py::test_one"]})
    assert ".venv/bin/python -m tests.servers .venv/bin/python -m pytest 'tests/dashboard/test_job.py" in said


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "tests", "quik"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == 1
    assert asked.stderr == "There is no part quik. Known: quick, slow, jobs.\n"


def test_no_test_is_outside_of_the_parts() -> None:
    """Quick and slow are each other's rest."""
    marked = [part.command[part.command.index("-m", 3) + 1] for part in suite.PARTS]
    assert marked[:2] == ["not slow", "slow"]
