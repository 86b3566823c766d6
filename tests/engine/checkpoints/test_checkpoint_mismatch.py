"""A checkpoint is refused with other settings, data or weights, not in a moved folder or smaller batches."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.checkpoints.test_checkpoints import Fuse, Killed, curves, run_on
from tests.engine.conftest import Recorder, spec_maker
from tests.tiny_model import build_tiny_model, colour_rows, tiny_base, write_canonical
from workers.contract.errors import CheckpointMismatch
from workers.contract.events import Message
from workers.contract.specs import BaseSpec, DataSpec, TrainSpec
from workers.engine.training.train import train


@pytest.fixture(scope="module")
def spec(base: BaseSpec, data: DataSpec) -> TrainSpec:
    return spec_maker(base, data)(max_steps=12, lora_dropout=0.2, validation_steps=3)


@pytest.fixture(scope="module")
def kept(spec: TrainSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The only checkpoint of a run that was killed."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(Killed):
        run_on([spec], folder, Fuse(5))
    (only,) = (folder / "checkpoints").iterdir()
    return only


def refused(other: TrainSpec, out: Path, kept: Path) -> str:
    with pytest.raises(CheckpointMismatch) as caught:
        train([other], out, report=Recorder(), resume_from=kept)
    return caught.value.message


def test_other_settings_are_refused(spec: TrainSpec, tmp_path: Path, kept: Path) -> None:
    other = replace(spec, hyperparameters=replace(spec.hyperparameters, weight_decay=0.2))
    assert refused(other, tmp_path, kept).startswith("The checkpoint was made with other settings than")


def test_another_dataset_is_refused(spec: TrainSpec, tmp_path: Path, kept: Path) -> None:
    other = replace(spec, data=replace(spec.data, sha256="f" * 64))
    assert "another dataset" in refused(other, tmp_path, kept)


def test_rows_changed_in_place_are_refused(spec: TrainSpec, tmp_path: Path, kept: Path) -> None:
    other = write_canonical(tmp_path / "other", colour_rows()[::-1])
    changed = replace(spec, data=replace(spec.data, path=other.path))
    assert "another dataset" in refused(changed, tmp_path, kept)


def test_weights_changed_in_place_are_refused(spec: TrainSpec, tmp_path: Path, kept: Path) -> None:
    folder = build_tiny_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    save_file({name: 1.01 * value for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    changed = replace(spec, base=replace(tiny_base(folder), sha256=spec.base.sha256))
    assert refused(changed, tmp_path, kept).startswith("The checkpoint was made with another base model")


def test_run_with_moved_dataset_folder_continues(
    spec: TrainSpec, tmp_path: Path, kept: Path, record: Recorder
) -> None:
    folder = shutil.copytree(spec.data.path, tmp_path / "moved")
    moved = replace(spec, data=replace(spec.data, path=str(folder)))
    train([moved], tmp_path / "out", report=record, resume_from=kept)
    assert len(record.series("train/loss")) == 12


def test_resume_with_smaller_micro_batch(spec: TrainSpec, tmp_path: Path, record: Recorder) -> None:
    plain = replace(spec, hyperparameters=replace(spec.hyperparameters, lora_dropout=0.0))
    whole, fuse, cut = Recorder(), Fuse(7), tmp_path / "cut"
    train([plain], tmp_path / "whole", report=whole)
    with pytest.raises(Killed):
        run_on([plain], cut, fuse)
    learn = replace(plain.hyperparameters, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    run_on([replace(plain, hyperparameters=learn)], cut, record)
    assert "Continues from step 6." in [event.text for event in record.of(Message)]
    assert curves(fuse, record)[0, "train/loss"] == pytest.approx(curves(whole)[0, "train/loss"], rel=1e-4)
    smaller = replace(learn, gradient_accumulation_steps=1)
    newest = max((cut / "checkpoints").iterdir())
    assert "other settings" in refused(replace(spec, hyperparameters=smaller), tmp_path / "other", newest), (
        "fewer rows in a step are another run"
    )
