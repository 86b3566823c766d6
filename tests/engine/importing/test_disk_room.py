"""A run needs room for three checkpoints and a reserve of 2 GB; one byte less is refused."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.contract.errors import DiskFull
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import BaseSpec, DataSpec, TargetSpec, TrainSpec
from workers.engine import disk_room

Usage = namedtuple("Usage", "total used free")
RESERVE = 2_000_000_000


@pytest.fixture
def leave_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the free bytes of every disk."""

    def leave(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**15, 10**15 - free, free))

    return leave


def make_spec(parameters: int = 1000) -> TrainSpec:
    """Only the number of trained parameters is read from it."""
    return TrainSpec(
        name="tiny",
        base=BaseSpec(path="/nowhere", name="tiny"),
        data=DataSpec(path="/nowhere", sha256="0" * 64),
        target=TargetSpec(target_modules=("o_proj",), modules=2, trainable_parameters=parameters),
        hyperparameters=Hyperparameters(max_steps=1),
    )


def checkpoint_bytes(spec: TrainSpec) -> int:
    """Return weight, two moments and best weight of each parameter in fp32, in bytes."""
    return spec.target.trainable_parameters * 4 * 4


def is_refused(folder: Path, *specs: TrainSpec) -> bool:
    try:
        disk_room.check_room(folder, specs, disk_room.RESERVE)
    except DiskFull:
        return True
    return False


@pytest.mark.parametrize("written", [0, 100])
@pytest.mark.parametrize("parameters", [[1000], [1000, 2000]])
def test_three_checkpoints_of_every_arm_and_the_reserve_must_fit(
    tmp_path: Path, leave_free: Callable[[int], None], parameters: list[int], written: int
) -> None:
    """The bytes of an earlier attempt's checkpoints count as free."""
    specs = [make_spec(count) for count in parameters]
    (tmp_path / "000001").mkdir()
    (tmp_path / "000001" / "state.safetensors").write_bytes(b"x" * written)
    enough = 3 * sum(map(checkpoint_bytes, specs)) - written + RESERVE
    leave_free(enough)
    assert not is_refused(tmp_path, *specs)
    leave_free(enough - 1)
    assert is_refused(tmp_path, *specs)


def test_existing_checkpoints_never_reduce_the_reserve(
    tmp_path: Path, leave_free: Callable[[int], None]
) -> None:
    spec = make_spec()
    (tmp_path / "000001").mkdir()
    (tmp_path / "000001" / "state.safetensors").write_bytes(b"x" * (4 * checkpoint_bytes(spec)))
    leave_free(RESERVE)
    assert not is_refused(tmp_path, spec)
    leave_free(RESERVE - 1)
    assert is_refused(tmp_path, spec)


def test_missing_folder_counts_as_its_disk(tmp_path: Path, leave_free: Callable[[int], None]) -> None:
    leave_free(0)
    assert is_refused(tmp_path / "job-1" / "checkpoints", make_spec())
