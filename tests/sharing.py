"""How processes share the tests: `pytest -n 2 --dist loadscope`. A pytest plugin (see `addopts`)."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Minutes each. They come first, so that all processes end at about the same time.
LONGEST = ("test_study_kill.py", "test_storm.py")
BROWSER_TESTS = "tests/e2e/"
# They start installations of their own.
BY_THEMSELVES = ("tests/e2e/test_start_command.py",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing | None:
    """Ours instead of the one that keeps each file together."""
    return Sharing(config, log) if config.getvalue("dist") == "loadscope" else None


class Sharing(LoadScopeScheduling):
    """Each test goes to the process that is free next; browser tests share an installation, so a process."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """What must stay in one process with this test."""
    is_shared = nodeid.startswith(BROWSER_TESTS) and not nodeid.startswith(BY_THEMSELVES)
    return BROWSER_TESTS if is_shared else nodeid
