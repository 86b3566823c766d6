"""Arms that read the same rows share forward and backward passes, and train as each would alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

from tests.engine.conftest import Recorder
from tests.tiny_model import HIDDEN, build_tiny_model, chat, tiny_base
from workers.contract import specs
from workers.contract.events import ArmEnd
from workers.contract.specs import TargetSpec, TrainSpec
from workers.engine.base_models.model import load_base, load_tokenizer
from workers.engine.training import fused, lora, shared_forward
from workers.engine.training import train as train_module
from workers.engine.training.arms import Arm
from workers.engine.training.encoding import CanonicalRow, Example, encode
from workers.engine.training.loss import PROVEN_TYPES, make_scorer
from workers.engine.training.shared_forward import SharedForward
from workers.engine.training.train import train

MakeSpec = Callable[..., TrainSpec]
CPU = torch.device("cpu")
# Modules of two adapters: one on few, one on many.
MODULES = {
    "llama": (["o_proj"], ["q_proj", "o_proj", "down_proj"]),
    "qwen2": (["v_proj"], ["q_proj", "o_proj", "up_proj"]),
    "gpt2": (["attn.c_proj"], ["c_attn", "c_fc"]),
    "gpt_neox": (["dense"], ["query_key_value", "dense_h_to_4h"]),
    "opt": (["out_proj"], ["q_proj", "fc1"]),
}
QUESTIONS = [chat(f"Is {number} a number?", "yes, " * number) for number in range(1, 5)]


def on_layers(lowest: int, r: int = 4) -> TargetSpec:
    """Attention output of the tiny Llama of four layers, from layer `lowest` upwards."""
    layers = tuple(range(lowest, 4))
    return TargetSpec(
        target_modules=("o_proj",),
        layers_to_transform=layers,
        modules=len(layers),
        trainable_parameters=len(layers) * r * 2 * HIDDEN,
    )


def four_layers(folder: Path) -> Any:
    return tiny_base(build_tiny_model(folder, num_hidden_layers=4))


@pytest.fixture
def always_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is computed arm by arm to measure it."""
    monkeypatch.setattr(shared_forward, "FIRST_ALONE", 0)
    monkeypatch.setattr(shared_forward, "ALONE_EVERY", 1_000)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """(number of the layer, copies of the batch, whether it has a gradient) of every call of an MLP."""
    made: list[tuple[int, int, bool]] = []

    def load(*arguments: Any, **options: Any) -> Any:
        base = load_base(*arguments, **options)
        for number, layer in enumerate(base.model.layers):
            layer.mlp.register_forward_hook(
                lambda _mlp, _inputs, output, number=number: made.append(
                    (number, len(output), output.requires_grad)
                )
            )
        return base

    monkeypatch.setattr(train_module, "load_base", load)
    return made


@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.usefixtures("always_shared")
def test_arms_that_share_passes_train_as_each_would_alone(
    make_spec: MakeSpec, tmp_path: Path, *, is_recomputed: bool
) -> None:
    base = four_layers(tmp_path / "m")
    settings = ((0, 0.0, 4), (3, 0.0, 4), (0, 0.0, 2), (1, 0.2, 4), (0, 0.0, 8), (3, 0.0, 2))
    specs = [
        make_spec(
            base=base,
            name=f"arm {number}",
            target=on_layers(lowest, rank),
            r=rank,
            lora_dropout=dropout,
            learning_rate=1e-2 / (number + 1),
            max_steps=4,
            gradient_checkpointing=is_recomputed,
            gradient_accumulation_steps=2,
        )
        for number, (lowest, dropout, rank) in enumerate(settings)
    ]
    together = Recorder()
    train(specs, tmp_path / "all", report=together)
    for arm, spec in enumerate(specs):
        alone = Recorder()
        train([spec], tmp_path / f"alone-{arm}", report=alone)
        for name in ("train/loss", "train/grad_norm", "train/token_accuracy", "validation/loss"):
            assert together.series(name, arm) == pytest.approx(alone.series(name), rel=1e-4)
        folders = tmp_path / f"all/arm-{arm}", tmp_path / f"alone-{arm}/arm-0"
        found, wanted = (load_file(folder / "adapter/adapter_model.safetensors") for folder in folders)
        assert all(torch.allclose(found[name], wanted[name], atol=1e-4) for name in wanted)


def peft_model(folder: Path, model_type: str) -> tuple[Any, Any]:
    """A base model with the adapters `arm0` and `arm1`, whose weights are not 0."""
    base = load_base(tiny_base(build_tiny_model(folder, model_type=model_type)), torch.float32, CPU)
    model = base
    torch.manual_seed(3)
    for arm, modules in enumerate(MODULES[model_type]):
        config = LoraConfig(r=2 + arm, target_modules=modules, task_type="CAUSAL_LM")
        model = lora.attach_adapter(model, config, f"arm{arm}")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    model.eval()
    fused.fuse(model)
    return base, model


def questions(base: Any) -> list[Example]:
    rows = [CanonicalRow(number, messages, None) for number, messages in enumerate(QUESTIONS, 1)]
    return encode(load_tokenizer(base), rows)


@pytest.mark.parametrize("model_type", sorted(PROVEN_TYPES))
def test_a_shared_pass_gives_each_arm_its_own_losses_and_gradients(
    make_spec: MakeSpec, tmp_path: Path, model_type: str
) -> None:
    base, model = peft_model(tmp_path / "m", model_type)
    examples = questions(tiny_base(tmp_path / "m"))
    arms = [Arm(number, make_spec(), {}, [], [], 1) for number in range(2)]
    for arm in arms:
        arm.parameters = list(lora.arm_parameters(model, arm.name).values())
    scorer = make_scorer(model, base, examples, CPU)
    shared = SharedForward(model, base, arms, scorer, CPU)
    assert set(shared.depths.values()) == {0}

    def result(group: list[Arm]) -> tuple[list[float], torch.Tensor, list[torch.Tensor]]:
        shared.start(group)
        (batch,) = scorer.batches([examples], CPU)
        losses, correct = scorer.training_loss(batch, len(batch.targets))
        with torch.no_grad():
            scores = scorer.token_losses(batch).view(len(group), -1)
        parameters = [parameter for arm in group for parameter in arm.parameters]
        assert correct.shape == losses.shape == (len(group),)
        return losses.tolist(), scores, list(torch.autograd.grad(losses.sum(), parameters))

    alone = [result([arm]) for arm in arms]
    losses, scores, gradients = result(arms)
    assert alone[0][0] != pytest.approx(alone[1][0], rel=1e-3)
    assert losses == pytest.approx([*alone[0][0], *alone[1][0]], rel=1e-5)
    for own, (_loss, expected, _gradients) in zip(scores, alone, strict=True):
        assert torch.allclose(own, expected[0], atol=1e-5)
    for found, wanted in zip(gradients, [*alone[0][2], *alone[1][2]], strict=True):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.usefixtures("always_shared")
def test_frozen_layers_compute_one_batch_for_all_arms(
    make_spec: MakeSpec, tmp_path: Path, calls: list[tuple[int, int, bool]]
) -> None:
    options = {"base": four_layers(tmp_path / "m"), "max_steps": 1, "validation_rows": 0}
    specs = [make_spec(target=on_layers(2, rank), r=rank, **options) for rank in (2, 4, 8)]
    train(specs, tmp_path / "out", report=Recorder())
    assert calls == [(0, 1, False), (1, 1, False), (2, 3, True), (3, 3, True)]


@pytest.mark.usefixtures("always_shared")
def test_no_gradient_passes_the_lowest_adapted_layer_of_an_arm(
    make_spec: MakeSpec, tmp_path: Path, calls: list[tuple[int, int, bool]]
) -> None:
    options = {"base": four_layers(tmp_path / "m"), "max_steps": 1, "validation_rows": 0}
    train(
        [make_spec(target=on_layers(low), **options) for low in (0, 2)], tmp_path / "out", report=Recorder()
    )
    assert [is_learned for _layer, _copies, is_learned in calls] == [True] * 4 + [False] * 2 + [True] * 2


@pytest.mark.parametrize(
    "changes",
    [{"seed": 2}, {"max_length": 36}, {"per_device_train_batch_size": 2}, {"lora_dropout": 0.1}],
)
@pytest.mark.usefixtures("always_shared")
def test_arms_that_differ_in_what_they_compute_share_no_pass(
    make_spec: MakeSpec, tmp_path: Path, calls: list[tuple[int, int, bool]], changes: dict[str, Any]
) -> None:
    specs = [make_spec(max_steps=1, validation_rows=0, **more) for more in ({}, changes)]
    train(specs, tmp_path / "out", report=Recorder())
    assert {copies for _layer, copies, _is_learned in calls} == {1}


def test_some_steps_are_computed_arm_by_arm_to_measure_them(
    make_spec: MakeSpec, tmp_path: Path, calls: list[tuple[int, int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_forward, "ALONE_EVERY", 5)
    record = Recorder()
    train([make_spec(validation_rows=0, max_steps=6, r=4)] * 2, tmp_path / "out", report=record)
    copies = [copies for layer, copies, _is_learned in calls if layer == 0]
    assert copies == [1, 1, 1, 1, 2, 2, 1, 1, 2]  # steps 1, 2 and 5 alone
    for end in record.of(ArmEnd):
        speed = end.summary["tokens"] / end.summary["seconds"]
        assert min(record.series("train/tokens_per_second", end.arm)) <= speed
        assert speed <= max(record.series("train/tokens_per_second", end.arm))


@pytest.mark.parametrize(
    ("lowest", "most_tokens", "passes"),
    [(0, 10_000, [5]), (0, 320, [3, 2]), (0, 150, [1] * 5), (2, 150, [3, 2]), (3, 150, [3, 2])],
)
@pytest.mark.usefixtures("always_shared")
def test_so_many_arms_share_a_pass_as_keep_no_more_than_one_long_batch(
    make_spec: MakeSpec,
    tmp_path: Path,
    calls: list[tuple[int, int, bool]],
    monkeypatch: pytest.MonkeyPatch,
    lowest: int,
    most_tokens: int,
    passes: list[int],
) -> None:
    monkeypatch.setattr(specs, "SHARED_PASS_TOKENS", most_tokens)
    spec = make_spec(
        base=four_layers(tmp_path / "m"), target=on_layers(lowest), max_steps=1, validation_rows=0
    )
    train([spec] * 5, tmp_path / "out", report=Recorder())
    assert [copies for layer, copies, _is_learned in calls if layer == 3] == passes


def test_an_adapter_outside_the_layers_trains_alone(make_spec: MakeSpec, tmp_path: Path) -> None:
    base, model = peft_model(tmp_path / "m", "llama")
    parameters = [base.get_input_embeddings().weight, *base.model.layers[1].mlp.parameters()]
    arms = [Arm(number, make_spec(), {}, [], [], 1, parameters=parameters) for number in range(2)]
    scorer = make_scorer(model, base, questions(tiny_base(tmp_path / "m")), CPU)
    assert set(SharedForward(model, base, arms, scorer, CPU).depths.values()) == {None}


def test_padded_rows_are_computed_arm_by_arm(make_spec: MakeSpec, tmp_path: Path) -> None:
    base, model = peft_model(tmp_path / "m", "llama")
    arms = [Arm(0, make_spec(), {}, [], [], 1, parameters=list(lora.arm_parameters(model, "arm0").values()))]
    packed = make_scorer(model, base, questions(tiny_base(tmp_path / "m")), CPU)
    for is_packed, depth in ((True, 0), (False, None)):
        scorer = replace(packed, is_packed=is_packed)
        assert SharedForward(model, base, arms, scorer, CPU).depths == {"arm0": depth}
