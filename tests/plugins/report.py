"""Print what tests measured after all of them have run. A pytest plugin (see `addopts`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Report a measured number at the end, from whichever process ran the test."""
    return lambda text: record_property("measured", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the reported measurements."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.getreports(name)]
    # Set-up and tear-down repeat the properties of the call.
    texts = [
        text
        for report in reports
        if report.when == "call"
        for name, text in report.user_properties
        if name == "measured"
    ]
    if texts:
        terminalreporter.section("measured")
        for text in texts:
            terminalreporter.line(str(text))
