"""What tests measured, told at the end of all of them, and the names of those that failed.

A pytest plugin (see `addopts`), so that whatever runs pytest has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Where to write the names, for `python -m tests`.
FAILURES = "GRAFTWORKS_TEST_FAILURES"


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says a number that was measured, whichever process it was measured in."""
    return lambda text: record_property("measured", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, then, for whoever runs several parts, what failed."""
    ended = [report for name in ("passed", "failed") for report in terminalreporter.getreports(name)]
    told = [text for report in ended for text in measurements(report)]
    if told:
        terminalreporter.section("measured")
        for text in told:
            terminalreporter.line(text)
    if FAILURES in os.environ:
        failed = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
        names = dict.fromkeys(report.nodeid for report in failed)
        Path(os.environ[FAILURES]).write_text("".join(f"{name}\n" for name in names))


def measurements(report: pytest.TestReport) -> Iterator[str]:
    """What a test has said."""
    # Set-up and end repeat what the test itself reports.
    said = report.user_properties if report.when == "call" else []
    return (str(text) for name, text in said if name == "measured")
