"""Validation on the rows of another dataset than the one that is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.checkpoints.test_checkpoints import Fuse, Killed, run_on
from tests.engine.conftest import Recorder
from tests.tiny_model import chat, colour_rows, write_canonical
from workers.contract.errors import CheckpointMismatch, RunError
from workers.contract.events import Message
from workers.contract.specs import DataSpec, TrainSpec
from workers.engine.base_models.model import load_tokenizer
from workers.engine.training.arms import Arm, prepare_arms
from workers.engine.training.artifacts import model_card, run_record
from workers.engine.training.train import train

MakeSpec = Callable[..., TrainSpec]
ROWS = [chat(f"Shape of {number}?", "round" if number % 2 else "square") for number in range(24)]


@pytest.fixture
def other(tmp_path: Path) -> DataSpec:
    """Rows of another dataset, in all of its splits."""
    return write_canonical(tmp_path / "other", ROWS[:12], validation=ROWS[12:20], test=ROWS[20:])


def prepare(spec: TrainSpec, record: Recorder) -> Arm:
    return prepare_arms([spec], load_tokenizer(spec.base), record, lambda: "")[0]


def test_all_of_its_rows_stand_in_for_the_validation_split(
    make_spec: MakeSpec, other: DataSpec, tmp_path: Path
) -> None:
    as_split = write_canonical(tmp_path / "same", colour_rows(), validation=ROWS)
    expected, found = Recorder(), Recorder()
    train([make_spec(data=as_split)], tmp_path / "a", report=expected)
    train([make_spec(validation_data=other)], tmp_path / "b", report=found)
    for name in ("train/loss", "validation/loss"):
        assert found.series(name) == expected.series(name)
    assert not (Path(other.path) / "tokens").exists(), "its test rows are kept nowhere"


def test_longer_rows_are_fewer(make_spec: MakeSpec, tmp_path: Path, record: Recorder) -> None:
    words = " and".join(" round" for _word in range(30))
    long = write_canonical(tmp_path / "long", [chat(f"Shape of {number}?", words) for number in range(60)])
    short = write_canonical(tmp_path / "short", [chat(f"Hue of {number}?", "red") for number in range(60)])
    # Sixty steps of 16 rows allow 96 rows for four validations.
    options = {"max_steps": 60, "per_device_train_batch_size": 16}
    counts = [
        len(prepare(make_spec(**options, validation_data=data), record).validation_examples)
        for data in (long, short)
    ]
    assert counts[0] == 16
    assert counts[1] > 18


def test_rows_that_are_trained_on_are_reported(
    make_spec: MakeSpec, other: DataSpec, tmp_path: Path, record: Recorder
) -> None:
    prepare(make_spec(validation_data=other), record)
    assert not record.of(Message)
    mixed = write_canonical(tmp_path / "mixed", ROWS[:5], validation=colour_rows(2), test=ROWS[5:7])
    prepare(make_spec(validation_data=mixed), record)
    (warning,) = record.of(Message)
    assert (warning.level, warning.text.split(",")[0]) == (
        "warning",
        "2 of the 9 validation rows are also training rows",
    )


def test_a_resumed_run_validates_on_the_same_rows(
    make_spec: MakeSpec, other: DataSpec, tmp_path: Path, record: Recorder
) -> None:
    spec = make_spec(max_steps=8, validation_steps=4, validation_data=other)
    whole, cut = Recorder(), Fuse(6)
    train([spec], tmp_path / "whole", report=whole)
    with pytest.raises(Killed):
        run_on([spec], tmp_path / "cut", cut)
    run_on([spec], tmp_path / "cut", record)
    for name in ("train/loss", "validation/loss"):
        assert record.series(name) == pytest.approx(whole.series(name))
    with pytest.raises(CheckpointMismatch):
        run_on([replace(spec, validation_data=None)], tmp_path / "cut", record)


def test_arms_of_one_call_share_it(make_spec: MakeSpec, other: DataSpec, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="share the base"):
        train([make_spec(), make_spec(validation_data=other)], tmp_path, report=Recorder())


def test_the_adapter_names_it_without_its_folder(
    make_spec: MakeSpec, other: DataSpec, tmp_path: Path, record: Recorder
) -> None:
    spec = make_spec(max_steps=1, validation_data=replace(other, name="Shapes", version=3))
    (end,) = train([spec], tmp_path / "out", report=record)
    assert end.summary["validation_rows"] == 16
    assert "Shapes, version 3" in model_card(spec, end.summary)
    stored = run_record(spec, end.summary)["spec"]["validation_data"]
    assert stored["sha256"] == other.sha256
    assert other.path not in json.dumps(stored)
