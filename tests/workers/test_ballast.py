"""The reserve on the disk: there while there is room, gone before the database cannot be written to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from django.conf import settings

from dashboard.management.commands.dispatch import Dispatcher
from dashboard.models import ballast

MIB = 1024**2


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Say how many bytes are free on a disk whose reserve is one megabyte."""
    monkeypatch.setattr(settings, "BALLAST_BYTES", MIB)
    yield lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    ballast.path().unlink(missing_ok=True)


def test_it_takes_real_space_while_there_is_plenty(free: Callable[[int], None]) -> None:
    free(100 * MIB)
    assert ballast.restore()
    about = ballast.path().stat()
    assert (about.st_size, about.st_blocks * 512 >= MIB) == (MIB, True)
    assert not ballast.restore(), "it is there"


def test_it_is_not_made_where_it_would_fill_the_disk(free: Callable[[int], None]) -> None:
    free(71 * MIB)
    assert not ballast.restore()
    assert not ballast.is_in_place()


def test_none_is_made_when_none_is_wanted(
    free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    free(100 * MIB)
    monkeypatch.setattr(settings, "BALLAST_BYTES", 0)
    assert not ballast.restore()


def test_the_dispatcher_frees_it_before_it_writes_to_the_database(
    free: Callable[[int], None], db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(100 * MIB)
    ballast.restore()
    dispatcher = Dispatcher()
    free(64 * MIB)
    dispatcher.beat()
    assert ballast.is_in_place(), "it is low, not full"
    free(64 * MIB - 1)
    monkeypatch.setattr(dispatcher, "register", lambda: pytest.fail("the reserve comes first"))
    monkeypatch.setattr("dashboard.management.commands.dispatch.WorkerNode", None)
    with pytest.raises(AttributeError):
        dispatcher.beat()
    assert not ballast.is_in_place()
