"""What the web can tell of checkpoints from their folder alone."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dashboard.models.jobs import checkpoint
from workers.contract import checkpoint_ownership

Break = Callable[[str, int], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training's folder with checkpoints of steps 3 and 6."""
    for number, step in ((1, 3), (2, 6)):
        make(tmp_path, number, step)
    return tmp_path


def make(folder: Path, number: int, step: int, attempt: int = 1) -> Path:
    path = folder / f"{number:06d}"
    path.mkdir()
    (path / "state.json").write_text("{}")
    manifest = {"step": step, "attempt": attempt, "files": {"state.json": "ab"}}
    (path / checkpoint_ownership.MANIFEST).write_text(json.dumps(manifest))
    return path


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Let the disk refuse each file of a name from now on."""
    real = Path.open

    def break_it(name: str, number: int) -> None:
        def refuse(path: Path, *options: Any, **more: Any) -> Any:
            if path.name == name:
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *options, **more)

        monkeypatch.setattr(Path, "open", refuse)

    return break_it


def test_it_is_the_newest_that_looks_whole(folder: Path) -> None:
    assert checkpoint.newest_step(folder) == 6
    (folder / "000002/state.json").unlink()
    assert checkpoint.newest_step(folder) == 3
    assert checkpoint.may_exist(folder)
    (folder / "000001" / checkpoint_ownership.MANIFEST).write_text("{")
    assert (checkpoint.newest_step(folder), checkpoint.may_exist(folder)) == (None, False)


def test_there_is_none_where_nothing_is(tmp_path: Path) -> None:
    missing = tmp_path / "job-7"
    assert (checkpoint.newest_step(missing), checkpoint.may_exist(missing)) == (None, False)


def test_what_was_written_after_the_hand_over_is_not_offered(folder: Path) -> None:
    checkpoint_ownership.take_ownership(folder, 2)
    make(folder, 3, 9, attempt=1)
    assert checkpoint.newest_step(folder) == 6
    make(folder, 4, 8, attempt=2)
    assert checkpoint.newest_step(folder) == 8


@pytest.mark.parametrize("name", [checkpoint_ownership.MANIFEST, checkpoint_ownership.OWNER])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_what_cannot_be_read_now_is_not_offered_and_not_given_up(
    folder: Path, breaks: Break, name: str, number: int
) -> None:
    checkpoint_ownership.take_ownership(folder, 2)
    breaks(name, number)
    assert (checkpoint.newest_step(folder), checkpoint.may_exist(folder)) == (None, True)
