"""The digest of a spec: equal for equal work."""

from __future__ import annotations

from typing import Any

import pytest

from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import (
    BaseSpec,
    DataSpec,
    TargetSpec,
    TrainSpec,
    digest_spec,
    from_dict,
    to_dict,
)


def spec() -> dict[str, Any]:
    return to_dict(
        TrainSpec(
            name="One",
            base=BaseSpec(path="/models/tiny", name="tiny", sha256="ab"),
            data=DataSpec(path="/data/cd", sha256="cd"),
            target=TargetSpec(target_modules=("o_proj",), modules=2, trainable_parameters=512),
            hyperparameters=Hyperparameters(),
        )
    )


def test_names_and_places_change_no_digest() -> None:
    moved = spec() | {"name": "Two", "preset": "Quality", "base": {"path": "/mnt/tiny", "sha256": "ab"}}
    assert digest_spec(moved) == digest_spec(spec())


@pytest.mark.parametrize(
    "changed",
    [
        {"engine_version": 1},
        {"dtype": "bfloat16"},
        {"base": {"sha256": "xy"}},
        {"data": {"sha256": "xy"}},
        {"validation_data": {"sha256": "xy"}},
        {"target": {}},
        {"hyperparameters": {}},
    ],
)
def test_everything_else_changes_it(changed: dict[str, Any]) -> None:
    assert digest_spec(spec() | changed) not in ("", digest_spec(spec()))


def test_validation_rows_count_by_their_content() -> None:
    here, there = (to_dict(DataSpec(path=path, sha256="ef", name=path)) for path in ("/a", "/b"))
    assert digest_spec(spec() | {"validation_data": here}) == digest_spec(spec() | {"validation_data": there})


def test_validation_data_survives_the_way_to_the_engine() -> None:
    values = spec() | {"validation_data": to_dict(DataSpec(path="/a", sha256="ef"))}
    assert from_dict(TrainSpec, values).validation_data == DataSpec(path="/a", sha256="ef")
    assert from_dict(TrainSpec, spec()).validation_data is None


@pytest.mark.parametrize("part", ["base", "data", "validation_data"])
def test_unhashed_files_have_no_digest(part: str) -> None:
    assert digest_spec(spec() | {part: {"sha256": ""}}) == ""
