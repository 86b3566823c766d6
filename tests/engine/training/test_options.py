"""Every option of the expert settings, trained for real: exact in PEFT, after a stop, and counted before."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.checkpoints.test_checkpoints import Fuse, Killed, assert_equal_runs, curves, run_on
from tests.engine.conftest import Logits, Recorder
from tests.tiny_model import build_tiny_model
from workers.contract.errors import SpecError, TargetError
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import TrainSpec
from workers.engine.base_models import census
from workers.engine.base_models.model import load_base, read_config
from workers.engine.training import lora
from workers.engine.training.arms import Arm
from workers.engine.training.train import train
from workers.forecasting.adapter_size import adapter_bytes
from workers.target_modules.census import Census
from workers.target_modules.custom import Selection
from workers.target_modules.presets import PRESETS, resolve
from workers.target_modules.resolution import Resolution, target_spec

MakeSpec = Callable[..., TrainSpec]
OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "loraplus": {"loraplus_lr_ratio": 16.0},
    "dropout": {"lora_dropout": 0.2},
    "twice": {"gradient_checkpointing": True},
    "as the base": {"autocast_adapter_dtype": False, "dtype": "bfloat16"},
    "dora on bfloat16": {"use_dora": True, "dtype": "bfloat16"},
    "dora and loraplus": {"use_dora": True, "loraplus_lr_ratio": 4.0, "use_rslora": True},
    "in 4 bits": {"load_in_4bit": True},
    "in 4 bits on bfloat16, dora": {"load_in_4bit": True, "dtype": "bfloat16", "use_dora": True},
    "in 4 bits, twice, dropout": {"load_in_4bit": True, "gradient_checkpointing": True, "lora_dropout": 0.2},
    "top layers": {"selection": Selection(("o_proj", "down_proj"), "top_half")},
    "own ranks": {
        "selection": Selection(("o_proj", "q_proj"), rank_pattern={"o_proj": 2}, alpha_pattern={"q_proj": 3})
    },
}
# Those that combine or stand for others; the rest resume in the proof.
RESUMED = ("dropout", "dora and loraplus", "in 4 bits, twice, dropout", "own ranks")
ATTENTION = Selection(("q_proj", "o_proj"))


@functools.cache
def counted(folder: str) -> Census:
    """The census of a folder, for which PEFT attaches every preset."""
    return census.count(read_config(Path(folder)), has_chat_template=True)


def chosen(selection: Selection, folder: str) -> Resolution:
    return selection.resolve(counted(folder))


@pytest.fixture
def with_option(make_spec: MakeSpec) -> Callable[..., TrainSpec]:
    """A spec with one option, its target resolved as a launch does."""

    def spec(options: dict[str, Any], **changes: Any) -> TrainSpec:
        values = {key: value for key, value in options.items() if key not in ("selection", "dtype")}
        plain = make_spec(**{"r": 4, "learning_rate": 5e-2, "validation_steps": 2, **values, **changes})
        resolution = chosen(options.get("selection", ATTENTION), plain.base.path)
        target = target_spec(resolution, plain.hyperparameters)
        return dataclasses.replace(plain, target=target, dtype=options.get("dtype", "float32"))

    return spec


@pytest.mark.parametrize("name", OPTIONS)
def test_peft_gives_equal_logits_with_each_option(
    with_option: Callable[..., TrainSpec], train_and_reload: Callable[[TrainSpec], Logits], name: str
) -> None:
    base, trained, reloaded = train_and_reload(with_option(OPTIONS[name], max_steps=3))
    assert torch.equal(trained, reloaded)
    assert (trained - base).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in RESUMED else pytest.mark.proof) for name in OPTIONS]
)
def test_resume_equals_uninterrupted_run_with_each_option(
    with_option: Callable[..., TrainSpec], tmp_path: Path, name: str
) -> None:
    specs = [with_option(OPTIONS[name], max_steps=6)]
    whole = Recorder()
    ends = train(specs, tmp_path / "whole", report=whole)
    first, second = Fuse(3), Recorder()
    with pytest.raises(Killed):
        run_on(specs, tmp_path / "again", first, checkpoint_seconds=0)
    resumed = run_on(specs, tmp_path / "again", second, checkpoint_seconds=0)
    assert_equal_runs(
        (tmp_path / "whole", ends, curves(whole)), (tmp_path / "again", resumed, curves(first, second))
    )


def test_dora_magnitudes_are_forecast(with_option: Callable[..., TrainSpec], tmp_path: Path) -> None:
    spec = with_option({"use_dora": True}, max_steps=1)
    ends = train([spec], tmp_path, report=Recorder())
    resolution = chosen(ATTENTION, spec.base.path)
    shaped = resolution.with_dora(spec.hyperparameters)
    # Two modules of two layers, 32 wide: a length for each output.
    assert shaped.params(4) == resolution.params(4) + 2 * 2 * 32
    assert ends[0].summary["trainable_parameters"] == shaped.params(4)
    assert ends[0].summary["adapter_bytes"] == adapter_bytes(shaped.matched, 4)
    saved = load_file(tmp_path / "arm-0/adapter/adapter_model.safetensors")
    assert sum(name.endswith("lora_magnitude_vector") for name in saved) == 4
    assert json.loads((tmp_path / "arm-0/adapter/adapter_config.json").read_text())["use_dora"] is True


def test_bfloat16_adapter_is_half_the_size(with_option: Callable[..., TrainSpec], tmp_path: Path) -> None:
    spec = with_option(OPTIONS["as the base"], max_steps=1)
    ends = train([spec], tmp_path, report=Recorder())
    saved = load_file(tmp_path / "arm-0/adapter/adapter_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    resolution = chosen(ATTENTION, spec.base.path)
    assert ends[0].summary["adapter_bytes"] == adapter_bytes(resolution.matched, 4, dtype_bytes=2)


def test_loraplus_multiplies_the_learning_rate_of_b(
    with_option: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    # At the first step B is zero, so A has no gradient, and AdamW moves each weight of B by the rate itself.
    moved = {}
    for ratio in (1.0, 8.0):
        spec = with_option(
            {"loraplus_lr_ratio": ratio},
            max_steps=1,
            learning_rate=1e-3,
            warmup_ratio=0.0,
            max_grad_norm=100.0,
        )
        train([spec], tmp_path / str(ratio), report=Recorder())
        saved = load_file(tmp_path / str(ratio) / "arm-0/adapter/adapter_model.safetensors")
        moved[ratio] = max(float(value.abs().max()) for key, value in saved.items() if "lora_B" in key)
    assert moved[8.0] == pytest.approx(8 * moved[1.0], rel=1e-4)


def test_every_parameter_is_in_one_group_of_the_optimizer(with_option: Callable[..., TrainSpec]) -> None:
    spec = with_option(OPTIONS["dora and loraplus"])
    model = lora.attach(load_base(spec.base, torch.float32, torch.device("cpu")), [spec])
    arm = Arm(0, spec, {}, [], [], 1)
    arm.create_optimizer(model, torch.device("cpu"))
    groups = arm.optimizer.param_groups
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(one) for one in lora.arm_parameters(model, "arm0").values())
    assert [group["ratio"] for group in groups] == [1.0, 4.0]


def test_dora_needs_its_own_run_and_linear_layers(
    with_option: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    specs = [with_option({"use_dora": True}), with_option({})]
    with pytest.raises(TargetError, match="trains alone"):
        train(specs, tmp_path, report=Recorder())
    folder = build_tiny_model(tmp_path / "gpt2", model_type="gpt2")
    with pytest.raises(SpecError, match="only linear layers"):
        target_spec(resolve(PRESETS["efficient"].roles, counted(str(folder))), Hyperparameters(use_dora=True))
    with pytest.raises(SpecError, match="must be 0 with `use_dora`"):
        Hyperparameters(use_dora=True, lora_dropout=0.1)
