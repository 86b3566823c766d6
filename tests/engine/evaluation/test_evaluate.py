"""Scores base and adapter on the same rows, compared with values computed by hand."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.conftest import Recorder
from tests.engine.training.test_train import everything
from tests.tiny_model import chat, colour_rows, write_canonical
from workers.contract.errors import DataError, Diverged, ModelError, Stopped, TargetError
from workers.contract.events import Message, Progress, Result
from workers.contract.specs import BaseSpec, DataSpec, EvalSpec, TrainSpec
from workers.engine.__main__ import failure
from workers.engine.evaluation.evaluate import evaluate
from workers.engine.training.data import Split
from workers.engine.training.train import train

MakeSpec = Callable[..., TrainSpec]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[BaseSpec, DataSpec, Path]:
    """An adapter that knows four rows by heart."""
    from tests.tiny_model import tiny_base
    from workers.contract.hyperparameters import Hyperparameters

    folder = tmp_path_factory.mktemp("trained")
    data = write_canonical(folder / "data", colour_rows(4))
    learn = Hyperparameters(
        r=16, learning_rate=5e-3, max_steps=80, per_device_train_batch_size=4, lr_scheduler_type="linear"
    )
    base = tiny_base(tiny_folder)
    spec = TrainSpec(
        name="t", base=base, data=data, target=everything(16), hyperparameters=learn, dtype="float32"
    )
    train([spec], folder / "out", report=Recorder())
    return base, data, folder / "out/arm-0/adapter"


@pytest.fixture
def make_eval(trained: tuple[BaseSpec, DataSpec, Path]) -> Callable[..., EvalSpec]:
    base, data, adapter = trained
    defaults: dict[str, Any] = {
        "base": base,
        "data": data,
        "adapters": {"adapter": str(adapter)},
        "dtype": "float32",
    }
    return lambda **changes: EvalSpec(**(defaults | changes))


@dataclass(frozen=True)
class Scored:
    """The results, files and events of an evaluation."""

    values: dict[str, Any]
    items: list[dict[str, Any]]
    record: Recorder


@pytest.fixture(scope="module")
def scored(trained: tuple[BaseSpec, DataSpec, Path], tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """The evaluation of `make_eval()`."""
    base, data, adapter = trained
    spec = EvalSpec(base=base, data=data, adapters={"adapter": str(adapter)}, dtype="float32")
    folder, record = tmp_path_factory.mktemp("scored"), Recorder()
    values = evaluate(spec, folder, report=record)
    lines = (folder / "items.jsonl").read_text().splitlines()
    return Scored(values, [json.loads(line) for line in lines], record)


def test_trained_adapter_scores_better_than_the_base(scored: Scored) -> None:
    values, record = scored.values, scored.record
    assert values["adapter"]["exact_match"] == 1.0
    assert values["base"]["exact_match"] == 0.0
    assert values["adapter"]["loss"] < 0.2 < values["base"]["loss"]
    assert values["adapter"]["perplexity"] == pytest.approx(math.exp(values["adapter"]["loss"]))
    assert values["rows"] == 4
    assert values["answers"] == "text"
    assert record.of(Result)[0].values == values
    timing = [Progress("timing", done, 4) for done in range(5)]
    assert record.of(Progress)[-6:] == [Progress("scoring", 8, 8), *timing]


def test_items_are_written_for_base_and_adapter(scored: Scored) -> None:
    values, items = scored.values, scored.items
    assert [item["subject"] for item in items] == ["base"] * 4 + ["adapter"] * 4
    assert items[0]["row"] == items[4]["row"]
    assert (items[4]["system"], items[4]["prompt"]) == ("", "Colour of 0?")
    assert items[4]["expected"] == items[4]["output"] == "red"
    total = sum(item["scores"]["loss"] * item["scores"]["tokens"] for item in items[4:])
    tokens = sum(item["scores"]["tokens"] for item in items[4:])
    assert values["adapter"]["loss"] == pytest.approx(total / tokens)


@pytest.mark.parametrize(("kept", "is_scored"), [("float32 on cpu", False), ("bfloat16 on cpu", True)])
def test_base_is_left_out_if_its_scores_are_kept_in_this_number_format(
    make_eval: Callable[..., EvalSpec], tmp_path: Path, kept: str, is_scored: bool
) -> None:
    values = evaluate(make_eval(kept_formats=(kept,)), tmp_path, report=Recorder())
    lines = (tmp_path / "items.jsonl").read_text().splitlines()
    assert ("base" in values) is is_scored
    assert len(lines) == (8 if is_scored else 4)
    assert values["ms_per_token"].keys() == {"base", "adapter"}


def test_base_scores_equal_those_without_an_adapter(
    scored: Scored, trained: tuple[BaseSpec, DataSpec, Path]
) -> None:
    from workers.engine.base_models.model import load_base, load_tokenizer
    from workers.engine.runtime import pick_device, pick_dtype
    from workers.engine.training.data import Split, pad
    from workers.engine.training.encoding import encode
    from workers.engine.training.loss import Scorer

    base, data, _adapter = trained
    model = load_base(base, pick_dtype("float32", pick_device()), pick_device())
    split = Split(data, "test")
    examples = encode(load_tokenizer(base), [split.row(index) for index in range(4)])
    losses = Scorer(model).token_losses(pad(examples, pick_device()))
    assert scored.values["base"]["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_rows_are_drawn_by_seed(make_eval: Callable[..., EvalSpec], tmp_path: Path) -> None:
    data = write_canonical(tmp_path / "many", colour_rows(4), test=colour_rows(20))
    drawn = []
    for seed in (1, 1, 2):
        asked = make_eval(data=data, max_rows=5, seed=seed, with_base=False)
        evaluate(asked, tmp_path / "out", report=Recorder())
        lines = (tmp_path / "out/items.jsonl").read_text().splitlines()
        drawn.append([json.loads(line)["row"] for line in lines])
    assert drawn[0] == drawn[1] != drawn[2]


def test_adapter_without_effect_is_reported(make_spec: MakeSpec, tmp_path: Path, record: Recorder) -> None:
    spec = make_spec(learning_rate=1e-7, max_steps=1)
    train([spec], tmp_path / "out", report=Recorder())
    folder = tmp_path / "out/arm-0/adapter"
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    silent = {name: value * 0 if "lora_B" in name else value for name, value in weights.items()}
    save_file(silent, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    asked = EvalSpec(base=spec.base, data=spec.data, adapters={"adapter": str(folder)}, dtype="float32")
    values = evaluate(asked, tmp_path / "scores", report=record)
    assert "changes nothing" in record.of(Message)[0].text
    assert values["adapter"] == pytest.approx(values["base"], rel=1e-5)


def test_plain_text_has_loss_and_perplexity_only(make_eval: Callable[..., EvalSpec], tmp_path: Path) -> None:
    data = write_canonical(tmp_path / "text", ["Some plain text.", "More of it."])
    values = evaluate(make_eval(data=data, with_base=False), tmp_path, report=Recorder())
    assert set(values["adapter"]) == {"loss", "perplexity", "general_loss", "general_accuracy"}


def test_a_long_prompt_is_cut_on_the_left(make_eval: Callable[..., EvalSpec], tmp_path: Path) -> None:
    data = write_canonical(tmp_path / "long", colour_rows(4), test=[chat("x" * 300 + " Colour of 0?", "red")])
    asked = make_eval(data=data, max_length=48, with_base=False)
    values = evaluate(asked, tmp_path, report=Recorder())
    assert values["rows"] == 1
    assert math.isfinite(values["adapter"]["loss"])


def test_a_split_without_answers_is_refused(make_eval: Callable[..., EvalSpec], tmp_path: Path) -> None:
    data = write_canonical(tmp_path / "none", colour_rows(4), test=[[{"role": "user", "content": "hello"}]])
    with pytest.raises(DataError, match="no row with an answer"):
        evaluate(make_eval(data=data), tmp_path, report=Recorder())


def test_a_pickled_adapter_is_refused(make_eval: Callable[..., EvalSpec], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(make_eval().adapters["adapter"], folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        evaluate(make_eval(adapters={"adapter": str(folder)}), tmp_path / "out", report=Recorder())


def test_evaluation_stops_on_cancel(
    make_eval: Callable[..., EvalSpec], tmp_path: Path, record: Recorder
) -> None:
    def should_stop() -> str:
        return "cancel" if any(event.phase == "scoring" for event in record.of(Progress)) else ""

    with pytest.raises(Stopped):
        evaluate(make_eval(), tmp_path, report=record, should_stop=should_stop)
    assert not (tmp_path / "items.jsonl").exists()


def test_several_adapters_score_as_each_alone(
    make_eval: Callable[..., EvalSpec], make_spec: MakeSpec, scored: Scored, tmp_path: Path
) -> None:
    good = make_eval().adapters["adapter"]
    train([make_spec(learning_rate=1e-3, max_steps=2)], tmp_path / "out", report=Recorder())
    other = str(tmp_path / "out/arm-0/adapter")
    together = evaluate(make_eval(adapters={"one": good, "two": other}), tmp_path / "both", report=Recorder())
    asked = make_eval(adapters={"two": other}, with_base=False)
    alone = evaluate(asked, tmp_path / "two", report=Recorder())
    assert together["two"] == pytest.approx(alone["two"], rel=1e-5)
    assert together["one"] == pytest.approx(scored.values["adapter"], rel=1e-5)
    assert together["base"] == pytest.approx(scored.values["base"], rel=1e-5)
    assert together["one"] != together["two"]


def test_base_is_not_scored_without_with_base(make_eval: Callable[..., EvalSpec], tmp_path: Path) -> None:
    values = evaluate(make_eval(with_base=False), tmp_path, report=Recorder())
    assert "base" not in values
    assert values["adapter"]["exact_match"] == 1.0


def test_general_loss_differs_from_the_base(scored: Scored) -> None:
    values = scored.values
    assert values["adapter"]["general_loss"] != values["base"]["general_loss"]
    assert math.isfinite(values["base"]["general_loss"])


def test_latency_is_measured_for_base_and_each_adapter(
    make_eval: Callable[..., EvalSpec], tmp_path: Path
) -> None:
    good = make_eval().adapters["adapter"]
    asked = make_eval(adapters={"one": good, "two": good}, with_base=False)
    found = evaluate(asked, tmp_path, report=Recorder())
    speeds = found["ms_per_token"]
    assert set(speeds) == {"base", "one", "two"}
    assert min(speeds.values()) > 0


def test_no_adapter_is_loaded_while_another_is_timed(
    trained: tuple[BaseSpec, DataSpec, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from peft.tuners.lora.layer import LoraLayer

    from workers.engine.evaluation import latency

    base, data, folder = trained
    seen: list[set[str]] = []

    def turn(model: Any, *_rest: Any) -> list[float]:
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        seen.append({name for layer in layers for name in layer.lora_A})
        return [0.001]

    monkeypatch.setattr(latency, "_measure", turn)
    adapters = {"one": str(folder), "two": str(folder)}
    spec = EvalSpec(base=base, data=data, adapters=adapters, dtype="float32", with_base=False)
    found = evaluate(spec, tmp_path, report=Recorder())
    assert seen == [set(), {"one"}, {"two"}, {"two"}, {"one"}, set()]
    assert found["ms_per_token"] == {"base": 1.0, "one": 1.0, "two": 1.0}


def test_items_have_groups_and_result_has_the_checksum(
    make_eval: Callable[..., EvalSpec],
    trained: tuple[BaseSpec, DataSpec, Path],
    scored: Scored,
    tmp_path: Path,
) -> None:
    assert all(item["group"] == item["row"] for item in scored.items)
    frozen = replace(trained[1], test_sha256=scored.values["split_sha256"])
    asked = make_eval(data=frozen, with_base=False)
    assert evaluate(asked, tmp_path, report=Recorder())["rows"] == 4


def test_changed_test_rows_are_refused(
    make_eval: Callable[..., EvalSpec], trained: tuple[BaseSpec, DataSpec, Path], tmp_path: Path
) -> None:
    data = write_canonical(tmp_path / "data", colour_rows(4))
    frozen = replace(data, test_sha256=Split(data, "test").sha256)
    write_canonical(tmp_path / "other", colour_rows(5))
    (tmp_path / "data/test.parquet").write_bytes((tmp_path / "other/test.parquet").read_bytes())
    with pytest.raises(DataError, match="have changed since they were") as caught:
        evaluate(make_eval(data=frozen), tmp_path, report=Recorder())
    assert caught.value.code == "test_set_changed"
    assert not (tmp_path / "items.jsonl").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to mmap 99 bytes from file <weights>: Cannot allocate memory (12)"),
    ],
)
def test_out_of_memory_while_loading_an_adapter_is_not_a_mismatch(
    make_eval: Callable[..., EvalSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr("peft.peft_model.PeftModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(TargetError) as refused:
        evaluate(make_eval(), tmp_path, report=Recorder())
    told = failure(refused.value)
    assert told.code == "out_of_memory"
    assert told.message.startswith("There was not enough memory")


def test_adapter_of_other_shapes_is_a_mismatch(
    make_eval: Callable[..., EvalSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("size mismatch for lora_A: copying a param with shape [4, 32] from [8, 32]")

    monkeypatch.setattr("peft.peft_model.PeftModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(TargetError) as refused:
        evaluate(make_eval(), tmp_path, report=Recorder())
    assert failure(refused.value).code == "target_modules_mismatch"


def test_scores_that_are_not_finite_are_refused(make_eval: Callable[..., EvalSpec], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(make_eval().adapters["adapter"], adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value * 1e30 for name, value in weights.items()}, adapter / "adapter_model.safetensors")
    asked = make_eval(adapters={"adapter": str(adapter)}, with_base=False)
    with pytest.raises(Diverged, match=r"The loss of `adapter` on row \d+ is not a finite number"):
        evaluate(asked, tmp_path / "out", report=Recorder())


def test_out_of_memory_while_loading_the_base_is_reported(
    make_eval: Callable[..., EvalSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    with pytest.raises(ModelError) as refused:
        evaluate(make_eval(), tmp_path, report=Recorder())
    assert failure(refused.value).code == "out_of_memory"
