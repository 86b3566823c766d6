"""The newest checkpoint of a job, read from its folder."""

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
    """Return a function that makes each file of a name unreadable."""
    real = Path.open

    def break_it(name: str, number: int) -> None:
        def refuse(path: Path, *options: Any, **more: Any) -> Any:
            if path.name == name:
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *options, **more)

        monkeypatch.setattr(Path, "open", refuse)

    return break_it


def test_the_newest_complete_checkpoint_counts(folder: Path) -> None:
    assert checkpoint.newest_step(folder) == 6
    (folder / "000002/state.json").unlink()
    assert checkpoint.newest_step(folder) == 3
    assert checkpoint.may_exist(folder)
    (folder / "000001" / checkpoint_ownership.MANIFEST).write_text("{")
    assert (checkpoint.newest_step(folder), checkpoint.may_exist(folder)) == (None, False)
    missing = folder / "missing"
    assert (checkpoint.newest_step(missing), checkpoint.may_exist(missing)) == (None, False)


def test_a_checkpoint_of_a_replaced_attempt_does_not_count(folder: Path) -> None:
    checkpoint_ownership.take_ownership(folder, 2)
    make(folder, 3, 9, attempt=1)
    assert checkpoint.newest_step(folder) == 6
    make(folder, 4, 8, attempt=2)
    assert checkpoint.newest_step(folder) == 8


@pytest.mark.parametrize("name", [checkpoint_ownership.MANIFEST, checkpoint_ownership.OWNER])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_an_unreadable_checkpoint_may_exist(folder: Path, breaks: Break, name: str, number: int) -> None:
    checkpoint_ownership.take_ownership(folder, 2)
    breaks(name, number)
    assert (checkpoint.newest_step(folder), checkpoint.may_exist(folder)) == (None, True)
