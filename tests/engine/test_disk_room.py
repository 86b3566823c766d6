"""A run needs room for three checkpoints and 2 GB to spare before it begins; one byte less is refused."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.engine import disk_room
from workers.errors import DiskFull
from workers.hyperparameters import Hyperparameters
from workers.specs import BaseSpec, DataSpec, TargetSpec, TrainSpec

Usage = namedtuple("Usage", "total used free")
SPARE = 2_000_000_000


@pytest.fixture
def leave_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """So many bytes are free on every disk."""

    def leave(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**15, 10**15 - free, free))

    return leave


def make_spec(parameters: int = 1000) -> TrainSpec:
    """Nothing is read of it but how many parameters are trained."""
    return TrainSpec(
        name="tiny",
        base=BaseSpec(path="/nowhere", name="tiny"),
        data=DataSpec(path="/nowhere", sha256="0" * 64),
        target=TargetSpec(target_modules=("o_proj",), modules=2, trainable_parameters=parameters),
        hyperparameters=Hyperparameters(max_steps=1),
    )


def checkpoint(spec: TrainSpec) -> int:
    """Bytes of one: weight, two moments and the best weight of each parameter, in fp32."""
    return spec.target.trainable_parameters * 4 * 4


def is_refused(folder: Path, *specs: TrainSpec) -> bool:
    try:
        disk_room.check_room(folder, specs, disk_room.RESERVE)
    except DiskFull:
        return True
    return False


def test_three_checkpoints_and_the_reserve_must_fit(
    tmp_path: Path, leave_free: Callable[[int], None]
) -> None:
    spec = make_spec()
    enough = 3 * checkpoint(spec) + SPARE
    leave_free(enough)
    assert not is_refused(tmp_path, spec)
    leave_free(enough - 1)
    assert is_refused(tmp_path, spec)


def test_every_arm_counts(tmp_path: Path, leave_free: Callable[[int], None]) -> None:
    specs = [make_spec(), make_spec(2000)]
    enough = 3 * sum(map(checkpoint, specs)) + SPARE
    leave_free(enough)
    assert not is_refused(tmp_path, *specs)
    leave_free(enough - 1)
    assert is_refused(tmp_path, *specs)


def test_existing_checkpoints_count_as_free(tmp_path: Path, leave_free: Callable[[int], None]) -> None:
    spec, kept = make_spec(), 100
    (tmp_path / "000001").mkdir()
    (tmp_path / "000001" / "state.safetensors").write_bytes(b"x" * kept)
    enough = 3 * checkpoint(spec) - kept + SPARE
    leave_free(enough)
    assert not is_refused(tmp_path, spec)
    leave_free(enough - 1)
    assert is_refused(tmp_path, spec)


def test_existing_checkpoints_never_reduce_the_reserve(
    tmp_path: Path, leave_free: Callable[[int], None]
) -> None:
    spec = make_spec()
    (tmp_path / "000001").mkdir()
    (tmp_path / "000001" / "state.safetensors").write_bytes(b"x" * (4 * checkpoint(spec)))
    leave_free(SPARE)
    assert not is_refused(tmp_path, spec)
    leave_free(SPARE - 1)
    assert is_refused(tmp_path, spec)


def test_missing_folder_counts_as_its_disk(tmp_path: Path, leave_free: Callable[[int], None]) -> None:
    leave_free(0)
    assert is_refused(tmp_path / "job-1" / "checkpoints", make_spec())
