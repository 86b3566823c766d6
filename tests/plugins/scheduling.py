"""Order and distribution of the tests among processes: `pytest -n 3`. A pytest plugin (see `addopts`).

xdist's own groups have no effect under pytest 9.2, whose node ids are no strings any more.
"""

from __future__ import annotations

import gc

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

BROWSER_TESTS = "tests/e2e/"
# It takes three minutes and comes early, so that all processes end at about the same time.
LONGEST = "test_storm.py"
# A folder of files with many slow tests, which any process may take one by one.
SLOW_FOLDER = "tests/workers/"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the browser tests first, which keep one process busy longest, then other files with slow tests."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> int:
        if scope_of(item.nodeid) == BROWSER_TESTS:
            return 0
        if item.path.name == LONGEST:
            return 1
        return 2 if item.path in slow else 3

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Leave what was collected out of every garbage collection, which takes 3 % of the tests' time."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ScopeScheduling:
    """Replace xdist's scheduler, whichever `--dist` says."""
    # It would put scopes with many tests first.
    config.option.loadscopereorder = False
    return ScopeScheduling(config, log)


def scope_of(nodeid: str) -> str:
    """Return what must stay in one process: all browser tests, a file, or a slow test alone."""
    if nodeid.startswith(SLOW_FOLDER):
        return nodeid
    path = nodeid.partition("::")[0]
    return BROWSER_TESTS if path.startswith(BROWSER_TESTS) else path


class ScopeScheduling(LoadScopeScheduling):
    """Send each scope of tests to the process that is free next."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
