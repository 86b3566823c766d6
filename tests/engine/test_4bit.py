"""A base model in 4 bits, on the CPU's implementation of bitsandbytes: exact, resumable and told of.

Nothing here has run on a GPU. `test_options.py` trains, reloads and resumes it like every other option.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import Recorder
from tests.tiny_model import build_tiny_model, tiny_base
from workers.contract.errors import ModelError, RunError, SpecError
from workers.contract.events import Message
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import EvalSpec, TargetSpec, TrainSpec, needs_4bit, to_dict
from workers.engine.base_models import census
from workers.engine.base_models.model import load_base, read_config
from workers.engine.evaluation.evaluate import evaluate
from workers.engine.runtime import prepare_environment
from workers.engine.training.train import train
from workers.target_modules.presets import PRESETS, resolve
from workers.target_modules.resolution import target_spec

MakeSpec = Callable[..., TrainSpec]
CPU = torch.device("cpu")
IDS = torch.arange(3, 43).reshape(2, 20)


def unpacked(model: Any, plain: Any) -> Any:
    """`plain` with the weights that the 4-bit model stands for."""
    from bitsandbytes.functional import dequantize_4bit

    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            packed = weights[name]
            whole = (
                dequantize_4bit(packed.data, packed.quant_state) if packed.dtype == torch.uint8 else packed
            )
            weight.copy_(whole)
    return plain


def gradient(model: Any) -> torch.Tensor:
    """Of the sum of the logits, at the model's input."""
    states = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=states).logits.pow(2).sum().backward()
    assert states.grad is not None
    return states.grad


def test_only_linear_layers_are_quantized(tiny_folder: Path) -> None:
    model = load_base(tiny_base(tiny_folder), torch.float32, CPU, in_4bit=True)
    packed = {name for name, weight in model.named_parameters() if weight.dtype == torch.uint8}
    assert len(packed) == 2 * 7
    assert all("_proj" in name for name in packed)
    assert model.get_output_embeddings().weight.dtype == torch.float32
    plain = load_base(tiny_base(tiny_folder), torch.float32, CPU)
    assert model.num_parameters() == plain.num_parameters()
    layer = model.model.layers[0].mlp.up_proj.weight
    assert layer.quant_state.quant_type == "nf4"
    assert layer.quant_state.nested


def test_logits_and_gradients_match_dequantized_weights(tiny_folder: Path) -> None:
    model = load_base(tiny_base(tiny_folder), torch.float32, CPU, in_4bit=True)
    plain = load_base(tiny_base(tiny_folder), torch.float32, CPU)
    with torch.no_grad():
        far = (model(input_ids=IDS).logits - plain(input_ids=IDS).logits).abs().max()
    rounded = unpacked(model, plain)
    # Answers come first: where a CPU packs layers anew for them, no gradient would come through afterwards.
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, rounded(input_ids=IDS).logits)
    torch.testing.assert_close(gradient(model), gradient(rounded), rtol=1e-4, atol=1e-4)
    assert far > 0.1


def test_gpt2_conv1d_layers_are_quantized(tmp_path: Path, make_spec: MakeSpec) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "gpt2", model_type="gpt2"))
    counted = census.count(read_config(Path(base.path)), has_chat_template=True)
    learn = Hyperparameters(r=4, max_steps=2, learning_rate=5e-2, load_in_4bit=True)
    target = target_spec(resolve(PRESETS["balanced"].roles, counted), learn)
    spec = dataclasses.replace(make_spec(base=base), target=target, hyperparameters=learn)
    assert train([spec], tmp_path / "out", report=Recorder())[0].outcome == "succeeded"


def test_base_and_adapter_are_scored_in_4_bits(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(load_in_4bit=True, learning_rate=5e-2)
    train([spec], tmp_path / "out", report=Recorder())
    adapters = {"run-1": str(tmp_path / "out/arm-0/adapter")}
    found = {}
    for in_4bit in (True, False):
        asked = EvalSpec(
            base=spec.base, data=spec.data, adapters=adapters, max_rows=4, max_new_tokens=4,
            dtype="float32", load_in_4bit=in_4bit,
        )  # fmt: skip
        found[in_4bit] = evaluate(asked, tmp_path, report=Recorder())
    assert found[True]["base"]["loss"] != pytest.approx(found[False]["base"]["loss"], rel=1e-3)
    assert found[True]["run-1"]["loss"] < found[True]["base"]["loss"]


def test_adapter_card_says_4_bits(make_spec: MakeSpec, tmp_path: Path, record: Recorder) -> None:
    train([make_spec(load_in_4bit=True)], tmp_path, report=record)
    folder = tmp_path / "arm-0/adapter"
    card = (folder / "README.md").read_text()
    assert "in 4 bits (NF4) and computed as float32" in card
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    spec = make_spec()
    exec(  # noqa: S102 - what people are told to run
        code.replace(spec.base.name, spec.base.path).replace("path/to/this/folder", str(folder)), names
    )
    assert names["model"].base_model.model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert json.loads((folder / "run.json").read_text())["spec"]["hyperparameters"]["load_in_4bit"] is True
    plain = load_base(make_spec().base, torch.float32, CPU)
    sums = next(event.text for event in record.of(Message) if "trainable parameters" in event.text)
    assert f"of the base model's {plain.num_parameters():,}." in sums
    assert "stored in 4 bits (NF4)" in sums


def test_arms_share_one_4bit_base(make_spec: MakeSpec, tmp_path: Path) -> None:
    ends = train(
        [make_spec(load_in_4bit=True), make_spec(load_in_4bit=True, seed=1)], tmp_path, report=Recorder()
    )
    assert [end.outcome for end in ends] == ["succeeded", "succeeded"]
    with pytest.raises(RunError, match="must share the base model"):
        train([make_spec(load_in_4bit=True), make_spec()], tmp_path, report=Recorder())


def test_missing_bitsandbytes_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="needs the package bitsandbytes") as error:
        load_base(tiny_base(tiny_folder), torch.float32, CPU, in_4bit=True)
    assert error.value.code == "no_4bit"


def test_options_that_exclude_4bit_are_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(SpecError, match="no adapter is kept in 4 bits"):
        Hyperparameters(load_in_4bit=True, autocast_adapter_dtype=False)
    experts = TargetSpec(
        target_modules=(), target_parameters=("mlp.experts.down_proj",), modules=1, trainable_parameters=1
    )
    with pytest.raises(SpecError, match="experts that are kept in 4 bits"):
        make_spec(load_in_4bit=True, target=experts)


def test_needs_4bit_of_a_stored_spec(make_spec: MakeSpec) -> None:
    packed, whole = to_dict(make_spec(load_in_4bit=True)), to_dict(make_spec())
    assert [needs_4bit(spec) for spec in (packed, whole, {"specs": [packed]}, {"specs": [whole]})] == [
        True, False, True, False,
    ]  # fmt: skip
    scored = EvalSpec(base=make_spec().base, data=make_spec().data, adapters={"a": "b"}, load_in_4bit=True)
    assert needs_4bit(to_dict(scored))
    assert not needs_4bit({"upload": "rows.jsonl"})


def test_bitsandbytes_is_not_imported_for_a_whole_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    prepare_environment(offline=True)
    assert importlib.util.find_spec("bitsandbytes") is None


def test_bitsandbytes_can_be_imported_for_a_4_bit_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    prepare_environment(offline=True, in_4bit=True)
    assert "bitsandbytes" not in sys.modules
