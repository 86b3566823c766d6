"""Every preset, and custom selections, trained for real: PEFT loads the adapter with equal logits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import Logits, Recorder
from tests.engine.families import COMPRESSED, LINEAR_THEN_FULL, VISION
from tests.tiny_model import build_tiny_model, tiny_base, tiny_target
from workers.contract.errors import SpecError, TargetError
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import TargetSpec, TrainSpec
from workers.engine.base_models import census
from workers.engine.base_models.model import read_config
from workers.engine.training.train import train
from workers.forecasting.adapter_size import adapter_bytes
from workers.target_modules.census import Census
from workers.target_modules.custom import Selection
from workers.target_modules.presets import PRESETS, resolve
from workers.target_modules.resolution import Resolution, names_sha256, target_spec

MakeSpec = Callable[..., TrainSpec]
RANK = 8
O_PROJ = [f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 1)]
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
TEXT = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "head_dim": 8},
    "deepseek_v3": {
        **EXPERTS,
        **COMPRESSED,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "qwen3_5_text": {"num_hidden_layers": 4, "layer_types": LINEAR_THEN_FULL, "head_dim": 8},
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **VISION},
    },
    "gemma3": {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
}
TRAINED = [
    *(("llama", slug) for slug in PRESETS),
    ("gpt2", "efficient"),
    ("mixtral", "quality"),
    ("gpt_oss", "balanced"),
    ("qwen3_moe", "mlp"),
    ("deepseek_v3", "quality"),
    pytest.param("qwen3_5_text", "attention", marks=pytest.mark.proof),  # without its kernels, 9 s
    ("gemma3", "query_value"),
    ("llava", "query_value"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model of a type, built when it is first asked for."""
    root = tmp_path_factory.mktemp("models")

    def folder(model_type: str) -> Path:
        path = root / model_type
        return path if path.exists() else build_tiny_model(path, model_type=model_type, **MODELS[model_type])

    return folder


@functools.cache
def counted(folder: Path) -> Census:
    return census.count(read_config(folder), has_chat_template=True)


def order(resolution: Resolution) -> TargetSpec:
    return target_spec(resolution, Hyperparameters(r=RANK))


@pytest.mark.parametrize(
    ("model_type", "choice"),
    [
        *TRAINED,
        ("llama", Selection(("o_proj", "down_proj"), layers="top_half", rank_pattern={"down_proj": 2})),
        ("llama", Selection(("q_proj", "o_proj"), rank_pattern={"o_proj": 4}, alpha_pattern={"q_proj": 32})),
        ("mixtral", Selection(("o_proj", "down_proj"), layers_to_transform=(1,))),
        ("gemma3", Selection(("o_proj",), layers_to_transform=(0,))),
    ],
)
def test_presets_and_selections_train_and_peft_gives_equal_logits(
    model_type: str,
    choice: str | Selection,
    folders: Callable[[str], Path],
    make_spec: MakeSpec,
    train_and_reload: Callable[[TrainSpec], Logits],
    tmp_path: Path,
) -> None:
    census_of_model = counted(folders(model_type))
    if isinstance(choice, str):
        resolution = resolve(PRESETS[choice].roles, census_of_model)
    else:
        resolution = choice.resolve(census_of_model)
    spec = make_spec(
        base=tiny_base(folders(model_type)), target=order(resolution), r=RANK, max_steps=3, learning_rate=5e-2
    )
    base, trained, reloaded = train_and_reload(spec)
    assert torch.allclose(trained, reloaded, atol=1e-5)
    assert (trained - base).abs().max() > 1e-3
    saved = tmp_path / "arm-0/adapter/adapter_model.safetensors"
    assert saved.stat().st_size == adapter_bytes(resolution.matched, RANK)


def test_experts_refuse_dropout(folders: Callable[[str], Path], make_spec: MakeSpec) -> None:
    target = order(resolve(PRESETS["mlp"].roles, counted(folders("mixtral"))))
    with pytest.raises(SpecError, match="`lora_dropout` must be 0") as caught:
        make_spec(target=target, r=RANK, lora_dropout=0.1)
    assert caught.value.field == "lora_dropout"


def test_experts_need_their_own_run(
    folders: Callable[[str], Path], make_spec: MakeSpec, tmp_path: Path
) -> None:
    target = order(resolve(PRESETS["mlp"].roles, counted(folders("mixtral"))))
    specs = [
        make_spec(base=tiny_base(folders("mixtral")), target=target, r=RANK, seed=seed) for seed in (1, 2)
    ]
    with pytest.raises(TargetError, match="trains alone"):
        train(specs, tmp_path / "out", report=Recorder())


def test_unexpected_modules_are_refused_before_weights_are_loaded(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **_options: Any) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("workers.engine.training.train.load_base", load)
    target = tiny_target(4)  # q_proj is as large as o_proj, so that only the names differ
    other = dataclasses.replace(target, target_modules=("q_proj",), names_sha256=names_sha256(O_PROJ))
    with pytest.raises(TargetError, match=r"other modules .* than expected, for example model\.layers\.0"):
        train([make_spec(target=other)], tmp_path / "out", report=Recorder())
