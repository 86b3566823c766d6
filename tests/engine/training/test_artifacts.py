"""The adapter's folder: PEFT loads it as it is, in a process that knows nothing of this product."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.conftest import Recorder
from workers.contract.errors import RunError
from workers.contract.events import ArmEnd, Artifact
from workers.contract.specs import TrainSpec
from workers.engine.training import artifacts
from workers.engine.training import train as train_module
from workers.engine.training.train import train
from workers.engine.training.validation import Validation

MakeSpec = Callable[..., TrainSpec]


@pytest.fixture
def folder(make_spec: MakeSpec, tmp_path: Path) -> Path:
    train([make_spec(name="Colours")], tmp_path / "out", report=Recorder())
    return tmp_path / "out/arm-0/adapter"


def test_files_of_the_adapter_folder(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o640 for path in folder.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_no_file_contains_a_local_path(folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path.name
        assert str(tiny_folder).encode() not in content, path.name


def test_the_config_names_the_public_base(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "graftworks/tiny-llama"
    assert config["inference_mode"] is True
    assert config["target_modules"] == ["o_proj"]
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 8, "CAUSAL_LM")


def test_the_base_revision_is_kept(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec()
    spec = dataclasses.replace(spec, base=dataclasses.replace(spec.base, revision="abc123"))
    train([spec], tmp_path / "out", report=Recorder())
    folder = tmp_path / "out/arm-0/adapter"
    assert json.loads((folder / "adapter_config.json").read_text())["revision"] == "abc123"
    assert 'revision="abc123"' in (folder / "README.md").read_text()


def test_model_card_is_complete(folder: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "graftworks/tiny-llama"
    assert card.data.library_name == "peft"
    assert card.data.tags == ["lora", "base_model:adapter:graftworks/tiny-llama"]
    assert card.data.license == "apache-2.0"
    assert "# Colours" in card.text
    assert "512 parameters" in card.text
    for placeholder in ("More Information Needed", "TODO", "[", "None", "nan"):
        assert placeholder not in card.text.replace('["', ""), placeholder


def test_the_run_record_holds_settings_versions_and_result(folder: Path, make_spec: MakeSpec) -> None:
    record = json.loads((folder / "run.json").read_text())
    assert record["spec"]["hyperparameters"]["seed"] == 42
    assert record["spec"]["data"]["sha256"] == make_spec().data.sha256
    assert record["versions"]["peft"]
    assert record["result"]["train_loss"] > 0
    assert record["result"]["dtype"] == "float32"
    assert {"torch", "transformers", "peft", "tokenizers", "safetensors"} <= set(record["versions"])
    template = (folder / "chat_template.jinja").read_text()
    assert record["result"]["chat_template_sha256"] == hashlib.sha256(template.encode()).hexdigest()
    assert len(record["result"]["tokenizer_sha256"]) == 64


def test_the_manifest_lists_every_file(make_spec: MakeSpec, tmp_path: Path, record: Recorder) -> None:
    train([make_spec()], tmp_path, report=record)
    artifact = record.of(Artifact)[0]
    folder = tmp_path / artifact.path
    assert artifact.files == {path.name: artifacts.file_sha256(path) for path in folder.iterdir()}


def save_with(
    make_spec: MakeSpec,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[dict[str, torch.Tensor]], object],
) -> Recorder:
    """Train, and change the saved weights before they are looked at again."""
    real, record = artifacts.check_saved, Recorder()

    def check(folder: Path, *arguments: object) -> None:
        weights = load_file(folder / artifacts.WEIGHTS)
        spoil(weights)
        save_file(weights, folder / artifacts.WEIGHTS, {"format": "pt"})
        real(folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(artifacts, "check_saved", check)
    with pytest.raises(RunError):
        train([make_spec()], out, report=record)
    assert not list(out.glob("arm-*/*")), "neither an adapter nor a part of one"
    return record


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    record = save_with(make_spec, tmp_path, monkeypatch, lambda weights: _first(weights)[0].fill_(value))
    (end,) = record.of(ArmEnd)
    assert (end.outcome, end.code, record.of(Artifact)) == ("failed", "diverged", [])


def test_unexpected_weights_are_not_saved(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = save_with(make_spec, tmp_path, monkeypatch, lambda weights: weights.popitem())
    assert record.of(ArmEnd)[0].code == "publish_failed"


def _first(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return next(iter(weights.values()))


def test_arm_with_unusable_adapter_fails_alone(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = artifacts.check_saved

    def check(folder: Path, model: object, name: str) -> None:
        if name == "arm0":
            raise RunError("The saved adapter holds other tensors.", code="publish_failed")
        real(folder, model, name)

    monkeypatch.setattr(artifacts, "check_saved", check)
    ends = train([make_spec(max_steps=2), make_spec(max_steps=4)], tmp_path, report=record)
    assert [(end.outcome, end.code) for end in ends] == [("failed", "publish_failed"), ("succeeded", "")]


def test_nan_loss_is_null_in_files(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "validate", lambda *_arguments: Validation([math.nan], [1], 0))
    train([make_spec()], tmp_path, report=Recorder())
    folder = tmp_path / "arm-0/adapter"
    record = json.loads((folder / "run.json").read_text(), parse_constant=pytest.fail)
    assert record["result"]["validation_loss"] is None
    assert "nan" not in (folder / "README.md").read_text().lower()


def test_special_characters_in_the_name_keep_the_card_valid(make_spec: MakeSpec, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    train([make_spec(name='---\n"x": [y]: {z}')], tmp_path, report=Recorder())
    card = ModelCard.load(tmp_path / "arm-0/adapter/README.md")
    assert card.data.library_name == "peft"
    assert '# --- "x": [y]: {z}' in card.text
