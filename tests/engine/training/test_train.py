"""The training loop on a tiny model: what it learns, repeats, refuses and stops."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.engine.conftest import Recorder
from tests.tiny_model import build_tiny_model, chat, colour_rows, tiny_base, write_canonical
from workers.contract.errors import DataError, Diverged, ModelError, RunError, TargetError
from workers.contract.events import ArmEnd, Artifact, Event, KeepAlive, Message, Metrics, Progress
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import BaseSpec, TargetSpec, TrainSpec
from workers.engine.base_models import model as model_module
from workers.engine.base_models.model import load_tokenizer
from workers.engine.training import loss as loss_module
from workers.engine.training import reporters
from workers.engine.training import train as train_module
from workers.engine.training.data import Split, encode_rows
from workers.engine.training.encoding import encode
from workers.engine.training.train import learning_rate, train

MakeSpec = Callable[..., TrainSpec]
CPU = torch.device("cpu")
EVERYTHING = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def everything(r: int) -> TargetSpec:
    per_rank = 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 64))
    return TargetSpec(target_modules=EVERYTHING, modules=14, trainable_parameters=per_rank * r)


def digest(module: nn.Module) -> dict[str, str]:
    return {
        name.replace("base_model.model.", "").replace(".base_layer", ""): hashlib.sha256(
            parameter.detach().numpy().tobytes()
        ).hexdigest()
        for name, parameter in module.named_parameters()
        if "lora_" not in name
    }


def test_the_same_spec_gives_the_same_losses_bit_for_bit(make_spec: MakeSpec, tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    train([make_spec(lora_dropout=0.1)], tmp_path / "a", report=first)
    train([make_spec(lora_dropout=0.1)], tmp_path / "b", report=second)
    assert first.series("train/loss") == second.series("train/loss")
    assert first.series("validation/loss") == second.series("validation/loss")
    weights = [(tmp_path / run / "arm-0/adapter/adapter_model.safetensors").read_bytes() for run in "ab"]
    assert weights[0] == weights[1]


def test_another_seed_gives_other_losses(make_spec: MakeSpec, tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    train([make_spec()], tmp_path / "a", report=first)
    train([make_spec(seed=43)], tmp_path / "b", report=second)
    assert first.series("train/loss") != second.series("train/loss")


def test_base_weights_stay_unchanged(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []

    def keep(*arguments: Any, **options: Any) -> Any:
        loaded.append(model_module.load_base(*arguments, **options))
        loaded.append(digest(loaded[0]))
        return loaded[0]

    monkeypatch.setattr(train_module, "load_base", keep)
    train([make_spec()], tmp_path, report=record)
    assert digest(loaded[0]) == loaded[1]


def test_it_overfits_four_examples(make_spec: MakeSpec, tmp_path: Path, record: Recorder) -> None:
    data = write_canonical(tmp_path / "four", colour_rows(4))
    spec = make_spec(
        data=data, target=everything(16), r=16, learning_rate=5e-3, max_steps=80, lr_scheduler_type="linear"
    )
    train([spec], tmp_path / "out", report=record)
    losses = record.series("train/loss")
    assert losses[0] > 5
    assert losses[-1] < 0.1
    assert record.series("validation/loss")[-1] < 0.1
    accuracies = record.series("train/token_accuracy")
    assert accuracies[0] < 0.1
    assert accuracies[-1] == record.series("validation/token_accuracy")[-1] == 1


def test_validation_counts_what_the_saved_adapter_predicts(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder, base: BaseSpec
) -> None:
    settings = {"r": 8, "learning_rate": 5e-3, "max_steps": 25, "lora_dropout": 0.2}
    spec = make_spec(**settings, target=everything(8), validation_steps=5, per_device_train_batch_size=3)
    (end,) = train([spec], tmp_path, report=record)
    model = PeftModel.from_pretrained(
        model_module.load_base(base, torch.float32, torch.device("cpu")), tmp_path / "arm-0/adapter"
    )
    split, correct = Split(spec.data, "validation"), []
    for row in encode(load_tokenizer(base), [split.row(index) for index in range(len(split))]):
        ids = torch.from_numpy(row.ids.astype("int64"))
        with torch.no_grad():
            predicted = model(input_ids=ids[None]).logits[0, :-1].argmax(-1)
        correct += (predicted == ids[1:])[row.loss_mask[1:]].tolist()
    place = end.summary["published_step"] // 5
    found = record.series("validation/token_accuracy")[place]
    assert 0 < found < 1
    assert found == pytest.approx(sum(correct) / len(correct))


def test_accumulation_equals_one_big_batch(make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = [chat("Say it", "word " * (1 + number % 5)) for number in range(16)]
    data = write_canonical(tmp_path / "uneven", rows)
    settings = {"data": data, "target": everything(8), "r": 8, "max_steps": 12}
    big, small = Recorder(), Recorder()
    train([make_spec(**settings, per_device_train_batch_size=8)], tmp_path / "a", report=big)
    spec = make_spec(**settings, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    train([spec], tmp_path / "b", report=small)
    assert small.series("train/loss") == pytest.approx(big.series("train/loss"), rel=1e-5)
    assert small.series("train/token_accuracy") == pytest.approx(big.series("train/token_accuracy"))
    assert big.series("train/token_accuracy")[-1] > 0.1
    assert small.series("train/grad_norm") == pytest.approx(big.series("train/grad_norm"), rel=1e-4)


def test_two_arms_train_as_each_would_alone(make_spec: MakeSpec, tmp_path: Path) -> None:
    one = make_spec(name="one", lora_dropout=0.2)
    two = make_spec(name="two", target=everything(2), r=2, seed=7, max_steps=4, lora_dropout=0.1)
    together, alone = Recorder(), [Recorder(), Recorder()]
    ends = train([one, two], tmp_path / "both", report=together)
    train([one], tmp_path / "one", report=alone[0])
    train([two], tmp_path / "two", report=alone[1])
    for arm in (0, 1):
        assert together.series("train/loss", arm) == alone[arm].series("train/loss")
        assert together.series("validation/loss", arm) == alone[arm].series("validation/loss")
    assert [(end.arm, end.outcome, end.step) for end in ends] == [(0, "succeeded", 6), (1, "succeeded", 4)]
    pair = [tmp_path / "both/arm-1", tmp_path / "two/arm-0"]
    weights = [(folder / "adapter/adapter_model.safetensors").read_bytes() for folder in pair]
    assert weights[0] == weights[1]


def test_events_of_a_run(make_spec: MakeSpec, tmp_path: Path, record: Recorder) -> None:
    ends = train([make_spec(validation_steps=3)], tmp_path, report=record)
    assert [event.step for event in record.of(Metrics) if "validation/loss" in event.values] == [0, 3, 6]
    assert [event.step for event in record.of(Metrics) if "train/loss" in event.values] == [1, 2, 3, 4, 5, 6]
    assert record.of(Progress)[-2] == Progress("training", 6, 6, 0.0)
    assert "24 training rows" in record.of(Message)[0].text
    assert record.of(Artifact)[0].path == "arm-0/adapter"
    assert record[-1] == ends[0]
    summary = ends[0].summary
    assert summary["trainable_parameters"] == 512
    assert summary["train_loss"] == record.series("train/loss")[-1]
    assert summary["best_validation_loss"] == min(record.series("validation/loss"))
    assert summary["peak_memory_bytes"] > 0


def test_first_step_does_not_wait_for_the_untrained_adapter(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder
) -> None:
    """Its loss is the base model's, although the adapter has learned meanwhile."""
    options = {"target": everything(4), "learning_rate": 0.1, "validation_steps": 3}
    specs = [make_spec(name=name, **options) for name in ("one", "two")]
    train(specs, tmp_path, report=record)
    for arm in (0, 1):
        told = [(event.step, *sorted(event.values)) for event in record.of(Metrics) if event.arm == arm]
        assert told[0][0] == 1
        assert "train/loss" in told[0]
        assert told[1] == (0, "validation/loss", "validation/token_accuracy")
    base, split = (
        model_module.load_base(specs[0].base, torch.float32, CPU),
        Split(specs[0].data, "validation"),
    )
    drawn = encode_rows(
        load_tokenizer(specs[0].base), split, range(len(split)), report=record, should_stop=str
    )
    total, count = 0.0, 0
    for example in drawn.values():
        labels = torch.where(torch.from_numpy(example.loss_mask), torch.from_numpy(example.ids).long(), -100)
        ids = torch.from_numpy(example.ids).long()
        total += float(base(input_ids=ids[None], labels=labels[None]).loss) * example.target_count
        count += example.target_count
    for arm in (0, 1):
        untrained, *later = record.series("validation/loss", arm)
        assert untrained == pytest.approx(total / count, rel=1e-5)
        assert untrained not in later


def test_keep_alive_within_step_and_validation(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of a large model may take longer than anybody waits for a silent process."""
    monkeypatch.setattr(reporters, "KEEP_ALIVE_SECONDS", 0.0)
    spec = make_spec(max_steps=2, gradient_accumulation_steps=3, per_device_train_batch_size=1)
    train([spec], tmp_path, report=record)
    between = dict.fromkeys(("step", "validation"), 0)
    before: list[Event] = []
    for event in record:
        if isinstance(event, Metrics):
            kind = "step" if "train/loss" in event.values else "validation"
            between[kind] += sum(isinstance(one, KeepAlive) for one in before)
            before = []
        before.append(event)
    assert between["step"] == 6
    assert between["validation"] >= 2


def test_it_counts_steps_by_epochs(make_spec: MakeSpec, tmp_path: Path, record: Recorder) -> None:
    ends = train([make_spec(num_train_epochs=1.5, per_device_train_batch_size=5)], tmp_path, report=record)
    assert ends[0].step == math.ceil(1.5 * math.ceil(24 / 5))


def test_learning_rate_warms_up_and_decays() -> None:
    learn = Hyperparameters(learning_rate=1.0 / 10, warmup_ratio=0.2, max_steps=10)
    rates = [learning_rate(learn, step, 10) for step in range(1, 11)]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_max_length_that_cuts_off_all_labels_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    data = write_canonical(tmp_path / "long", [chat("x" * 80, "yes")] * 5)
    with pytest.raises(DataError, match=r"all 5 training rows.*at least \d+") as caught:
        train([make_spec(data=data, max_length=32)], tmp_path / "out", report=Recorder())
    assert caught.value.code == "labels_cut_off"
    assert not (tmp_path / "out").exists()


def test_rows_that_are_partly_cut_are_counted(make_spec: MakeSpec, tmp_path: Path, record: Recorder) -> None:
    data = write_canonical(
        tmp_path / "mixed", [*colour_rows(20), chat("x" * 90, "yes"), chat("hm", "y" * 90)]
    )
    train([make_spec(data=data, max_length=64, num_train_epochs=1)], tmp_path / "out", report=record)
    told = record.of(Message)[0].text
    assert "2 of 22 rows are longer" in told
    assert "1 of them lost their whole answer" in told
    assert "21 training rows" in record.of(Message)[1].text


def test_max_length_beyond_the_model_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"2,000.*1,024"):
        train([make_spec(max_length=2000)], tmp_path, report=Recorder())


def test_unexpected_number_of_modules_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    target = TargetSpec(target_modules=("o_proj", "typo"), modules=4, trainable_parameters=1024)
    with pytest.raises(TargetError, match=r"adapted 2 modules .* with 512 parameters.*4 modules with 1,024"):
        train([make_spec(target=target)], tmp_path, report=Recorder())


def test_target_modules_without_match_are_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    target = TargetSpec(target_modules=("typo",), modules=1, trainable_parameters=1)
    with pytest.raises(TargetError, match="fit nothing"):
        train([make_spec(target=target)], tmp_path, report=Recorder())


def test_nan_loss_fails_the_arm(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loss_module.Scorer.training_loss

    def poisoned(self: Any, batch: Any, labelled: int) -> tuple[torch.Tensor, torch.Tensor]:
        loss, correct = real(self, batch, labelled)
        return loss * (math.nan if record.series("train/loss")[2:] else 1.0), correct

    monkeypatch.setattr(loss_module.Scorer, "training_loss", poisoned)
    with pytest.raises(Diverged, match="step 4 of 6"):
        train([make_spec()], tmp_path, report=record)
    assert len(record.series("train/loss")) == 3
    end = record.of(ArmEnd)[0]
    assert (end.outcome, end.code, end.step) == ("failed", "diverged", 4)
    assert not (tmp_path / "arm-0").exists()


def test_remote_code_is_refused(make_spec: MakeSpec, tiny_folder: Path, tmp_path: Path) -> None:
    folder = _copy(tiny_folder, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ModelError, match="code of its own"):
        train([make_spec(base=tiny_base(folder))], tmp_path / "out", report=Recorder())


def test_a_folder_without_safetensors_is_refused(
    make_spec: MakeSpec, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = _copy(tiny_folder, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors") as caught:
        train([make_spec(base=tiny_base(folder))], tmp_path / "out", report=Recorder())
    assert str(folder) not in caught.value.message


def test_damaged_weights_are_refused_without_naming_the_folder(
    make_spec: MakeSpec, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = _copy(tiny_folder, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        train([make_spec(base=tiny_base(folder))], tmp_path / "out", report=Recorder())
    assert str(folder) not in caught.value.message


def test_arms_with_different_base_models_are_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    other = BaseSpec(path=str(tmp_path), name="other")
    with pytest.raises(RunError, match="share the base"):
        train([make_spec(), make_spec(base=other)], tmp_path, report=Recorder())


def test_training_without_validation_rows_warns(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder
) -> None:
    data = write_canonical(tmp_path / "none", colour_rows(8), validation=[])
    ends = train([make_spec(data=data)], tmp_path / "out", report=record)
    assert "no validation loss" in record.of(Message)[0].text
    assert ends[0].summary["validation_loss"] is None


def test_bfloat16_reaches_the_same_validation_loss(make_spec: MakeSpec, tmp_path: Path) -> None:
    full, half = Recorder(), Recorder()
    train([make_spec()], tmp_path / "a", report=full)
    ends = train([make_spec(dtype="bfloat16")], tmp_path / "b", report=half)
    assert ends[0].summary["dtype"] == "bfloat16"
    assert half.series("validation/loss")[-1] == pytest.approx(full.series("validation/loss")[-1], rel=0.02)


def test_plain_text_trains(make_spec: MakeSpec, tmp_path: Path, record: Recorder) -> None:
    data = write_canonical(tmp_path / "text", ["Some plain text.", "Some more of it.", "And the end."])
    train([make_spec(data=data)], tmp_path / "out", report=record)
    assert record.series("train/loss")[-1] < record.series("train/loss")[0]


@pytest.mark.parametrize(
    ("model_type", "modules", "parameters"),
    [("gpt2", ("attn.c_proj",), 512), ("opt", ("out_proj",), 512), ("mistral", ("o_proj",), 512)],
)
def test_it_trains_other_architectures(
    make_spec: MakeSpec,
    tmp_path: Path,
    record: Recorder,
    model_type: str,
    modules: tuple[str],
    parameters: int,
) -> None:
    folder = build_tiny_model(tmp_path / model_type, model_type=model_type)
    target = TargetSpec(target_modules=modules, modules=2, trainable_parameters=parameters)
    spec = make_spec(base=tiny_base(folder), target=target, validation_steps=3)
    train([spec], tmp_path / "out", report=record)
    losses = record.series("validation/loss")
    assert losses[-1] < losses[0]


def _copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_peak_memory_can_be_reset_between_turns(
    make_spec: MakeSpec, tmp_path: Path, record: Recorder
) -> None:
    """An arm that holds a large block while it works raises its own figure, not its neighbour's."""
    from workers.engine import runtime

    size = 64 * 1024**2
    runtime.reset_peak_memory(torch.device("cpu"))
    peaks = [runtime.peak_memory_bytes(torch.device("cpu"))]
    # Mapped, not allocated: an allocator may serve a block from memory that is resident already.
    with mmap.mmap(-1, size) as block:
        block.write(b"1" * size)
        peaks.append(runtime.peak_memory_bytes(torch.device("cpu")))
    assert peaks[1] - peaks[0] > size // 2
    runtime.reset_peak_memory(torch.device("cpu"))
    assert runtime.peak_memory_bytes(torch.device("cpu")) < peaks[1] - size // 2
    ends = train([make_spec(), make_spec()], tmp_path / "out", report=record)
    assert all(0 < end.summary["peak_memory_bytes"] < 2 * peaks[1] for end in ends)
