"""Arms that leave the lowest layers frozen compute them once for the same rows, and train as if alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.conftest import Recorder
from tests.tiny_model import HIDDEN, build_tiny_model, chat, tiny_base
from workers.contract.specs import TargetSpec, TrainSpec
from workers.engine.base_models.model import load_base, load_tokenizer
from workers.engine.training import train as train_module
from workers.engine.training.arms import Arm
from workers.engine.training.encoding import CanonicalRow, encode
from workers.engine.training.loss import PROVEN_TYPES, make_scorer
from workers.engine.training.train import train
from workers.engine.training.trunk import SharedTrunk

MakeSpec = Callable[..., TrainSpec]
CPU = torch.device("cpu")


def upper_layers(lowest: int, r: int = 4) -> TargetSpec:
    """Attention output of the tiny Llama of four layers, from layer `lowest` upwards."""
    layers = tuple(range(lowest, 4))
    return TargetSpec(
        target_modules=("o_proj",),
        layers_to_transform=layers,
        modules=len(layers),
        trainable_parameters=len(layers) * r * 2 * HIDDEN,
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(number of the layer, whether its output has a gradient) of every forward pass of a layer's MLP."""
    made: list[tuple[int, bool]] = []

    def load(*arguments: Any, **options: Any) -> Any:
        base = load_base(*arguments, **options)
        for number, layer in enumerate(base.model.layers):
            layer.mlp.register_forward_hook(
                lambda _mlp, _inputs, output, number=number: made.append((number, output.requires_grad))
            )
        return base

    monkeypatch.setattr(train_module, "load_base", load)
    return made


@pytest.mark.parametrize("is_recomputed", [False, True])
def test_arms_on_upper_layers_train_as_each_would_alone(
    make_spec: MakeSpec, tmp_path: Path, *, is_recomputed: bool
) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "m", num_hidden_layers=4))
    specs = [
        make_spec(
            base=base,
            name=f"from {lowest}",
            target=upper_layers(lowest),
            lora_dropout=dropout,
            max_steps=3,
            gradient_checkpointing=is_recomputed,
            gradient_accumulation_steps=2,
        )
        for lowest, dropout in ((3, 0.0), (0, 0.0), (1, 0.2), (2, 0.0))
    ]
    together = Recorder()
    train(specs, tmp_path / "all", report=together)
    for arm, spec in enumerate(specs):
        alone = Recorder()
        train([spec], tmp_path / f"alone-{arm}", report=alone)
        for name in ("train/loss", "train/grad_norm", "validation/loss"):
            assert together.series(name, arm) == alone.series(name)


def test_frozen_layers_run_once_for_all_arms_of_a_step(
    make_spec: MakeSpec, tmp_path: Path, calls: list[tuple[int, bool]]
) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "m", num_hidden_layers=4))
    specs = [
        make_spec(base=base, target=upper_layers(lowest), max_steps=2, validation_steps=2)
        for lowest in (3, 2, 3)
    ]
    train(specs, tmp_path / "out", report=Recorder())
    counts = [sum(number == layer for number, _ in calls) for layer in range(4)]
    assert counts[0] == counts[1]
    # The first arm needs layer 2 without an adapter, the second one with its own.
    assert counts[2] == 2 * counts[0]
    assert counts[3] == 3 * counts[0]


def test_no_gradient_passes_the_lowest_adapted_layer(
    make_spec: MakeSpec, tmp_path: Path, calls: list[tuple[int, bool]]
) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "m", num_hidden_layers=4))
    train([make_spec(base=base, target=upper_layers(2), max_steps=1)], tmp_path / "out", report=Recorder())
    assert {number for number, has_gradient in calls if has_gradient} == {2, 3}


def test_arms_with_other_rows_share_nothing(
    make_spec: MakeSpec, tmp_path: Path, calls: list[tuple[int, bool]]
) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "m", num_hidden_layers=4))
    options: dict[str, Any] = {"base": base, "max_steps": 1, "validation_rows": 0}
    specs = [make_spec(target=upper_layers(2), seed=seed, **options) for seed in (1, 2)]
    train(specs, tmp_path / "out", report=Recorder())
    assert [number for number, _ in calls] == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("model_type", sorted(PROVEN_TYPES))
def test_a_shared_trunk_gives_the_gradients_of_the_whole_model(
    make_spec: MakeSpec, tmp_path: Path, model_type: str
) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "m", model_type=model_type))
    model = load_base(base, torch.float32, CPU)
    rows = [CanonicalRow(number, chat("Short?", "yes" * number), None) for number in (1, 2)]
    examples = encode(load_tokenizer(base), rows)
    upper = [item.requires_grad_(True) for name, item in model.named_parameters() if ".1." in name]
    scorer = make_scorer(model, model, examples, CPU)
    batch = scorer.collate(examples, CPU)

    def gradient() -> torch.Tensor:
        parts = torch.autograd.grad(scorer.training_loss(batch, len(batch.targets))[0], upper)
        return torch.cat([part.flatten() for part in parts])

    wanted = gradient()
    arms = [Arm(index, make_spec(), {}, [], [], 1, parameters=upper) for index in range(2)]
    trunk = SharedTrunk(model, arms)
    assert set(trunk.depths.values()) == {1}
    for arm in arms:
        trunk.start_turn(arm, 1)
        assert torch.equal(gradient(), wanted)
    assert trunk.saved_seconds > 0


def test_an_adapter_outside_the_layers_leaves_no_trunk(make_spec: MakeSpec, tmp_path: Path) -> None:
    model = load_base(tiny_base(build_tiny_model(tmp_path / "m")), torch.float32, CPU)
    parameters: list[nn.Parameter] = [
        model.get_input_embeddings().weight,
        *model.model.layers[1].parameters(),
    ]
    arms = [Arm(index, make_spec(), {}, [], [], 1, parameters=parameters) for index in range(2)]
    assert set(SharedTrunk(model, arms).depths.values()) == {0}
