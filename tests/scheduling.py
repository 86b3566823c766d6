"""Order and distribution of the tests among processes: `pytest -n 2`. A pytest plugin (see `addopts`).

xdist's own groups have no effect under pytest 9.2, whose node ids are no strings any more.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# They take minutes and come first, so that all processes end at about the same time.
LONGEST = ("test_storm.py", "test_study_kill.py")
BROWSER_TESTS = "tests/e2e/"
# These start installations of their own; the other browser tests share one.
OWN_INSTALLATION = "tests/e2e/test_start_command.py"
# Files of many slow tests, which any process may take one by one.
SLOW_FOLDERS = ("tests/workers/", OWN_INSTALLATION)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ScopeScheduling:
    """Replace xdist's scheduler, whichever `--dist` says."""
    return ScopeScheduling(config, log)


class ScopeScheduling(LoadScopeScheduling):
    """Send each scope of tests to the process that is free next."""

    def _split_scope(self, nodeid: str) -> str:
        """Return what must stay in one process: all browser tests, a file, or a slow test alone."""
        if nodeid.startswith(SLOW_FOLDERS):
            return nodeid
        return BROWSER_TESTS if nodeid.startswith(BROWSER_TESTS) else nodeid.partition("::")[0]
