"""The engine on CUDA, against the CPU: `make gpu-check` on a machine with an NVIDIA GPU.

Everything runs as the real process `python -m workers.engine` on the bundled model and the sample's rows. A
machine without a GPU fails here instead of skipping: a check that did not run has shown nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from dashboard.management.commands.start import devices
from dashboard.models.catalog.dataset import SAMPLE_FILE
from tests.tiny_model import write_canonical
from workers.contract.chat import Text
from workers.contract.events import (
    Checkpoint,
    Event,
    Failure,
    Metrics,
    Progress,
    Result,
    Started,
    from_line,
)
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import (
    BaseSpec,
    DataSpec,
    EvalSpec,
    ServeSpec,
    TargetSpec,
    TrainSpec,
    to_dict,
)
from workers.supervision import forked_engine
from workers.supervision.forked_engine import ForkingPopen

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
BASE = BaseSpec(path=str(ROOT / ".cache/bundled/SmolLM2-135M-Instruct"), name="SmolLM2-135M-Instruct")
STEPS, RANK = 20, 16
# Largest difference of any step's loss in nats from the CPU's, in 4 bits from its own in 4 bits. Sums in
# another order change little in fp32; bfloat16 rounds each product, on a CPU by up to 0.051.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "4bit": 0.05}
RESUME_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "4bit": 1e-2}
FREED_BYTES = 100e6
SETTINGS_FORECAST = 8
ADAPTER = "a" * 64


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Fail without CUDA."""
    import torch

    assert torch.cuda.is_available(), "torch sees no CUDA device: install a CUDA build of torch and a driver."


@pytest.fixture(autouse=True)
def engines() -> Iterator[list[Engine]]:
    """The engines of a test, which do not outlive it."""
    Engine.started.clear()
    yield Engine.started
    for engine in Engine.started:
        engine.process.kill()
        engine.process.wait()
        assert engine.process.stdout
        engine.process.stdout.close()
        engine.log.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    rows = [json.loads(line)["messages"] for line in SAMPLE_FILE.read_text().splitlines()]
    folder = tmp_path_factory.mktemp("data")
    return write_canonical(folder, rows[:200], validation=rows[200:240], test=rows[240:300])


def make_spec(data: DataSpec, dtype: str = "float32", **changes: Any) -> TrainSpec:
    learn = {"r": RANK, "learning_rate": 1e-3, "max_steps": STEPS, "load_in_4bit": dtype == "4bit"} | changes
    return TrainSpec(
        name="gpu",
        base=BASE,
        data=data,
        target=TargetSpec(target_modules=("o_proj",), modules=30, trainable_parameters=30 * RANK * 2 * 576),
        hyperparameters=Hyperparameters(**learn),
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
    )


class Engine:
    """One engine process and the events that it reported; it sees one card, by default the first."""

    started: list[Engine] = []

    def __init__(self, kind: str, spec: Any, folder: Path, device: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(json.dumps(to_dict(spec)))
        device = devices()[0] if device is None else device
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": device, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        self.device = device
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.engine", kind, str(folder / "spec.json"), str(folder)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        self.started.append(self)

    def wait_for(self, kind: type[Checkpoint | Metrics], step: int = 0) -> None:
        """Read events until the first of this kind at `step` or later."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = from_line(line)
            if isinstance(event, kind) and event.step >= step:
                return
        pytest.fail(f"the engine ended without a {kind.__name__}")

    def finish(self, timeout: float = 600) -> list[Event]:
        """Return the events that have not been read. After the timeout it is killed."""
        assert self.process.stdout is not None
        watch = threading.Timer(timeout, self.process.kill)
        watch.start()
        events = [from_line(line) for line in self.process.stdout]
        self.process.wait()
        watch.cancel()
        kinds = [event.device.split()[0] for event in events if isinstance(event, Started)]
        assert kinds in ([], ["cuda" if self.device else "cpu"])
        return events


def losses(events: list[Event]) -> list[float]:
    return [
        event.values["train/loss"]
        for event in events
        if isinstance(event, Metrics) and "train/loss" in event.values
    ]


def used_bytes(card: str) -> int:
    """Return the memory in use on a card, of all processes."""
    import pynvml

    pynvml.nvmlInit()
    by_number = pynvml.nvmlDeviceGetHandleByIndex
    handle = by_number(int(card)) if card.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(card)
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


@pytest.fixture(scope="module")
def cpu_losses(data: DataSpec, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[float]]:
    """Return a function for the losses of each step on the CPU."""

    @functools.cache
    def train(dtype: str) -> list[float]:
        folder = tmp_path_factory.mktemp("cpu")
        found = losses(Engine("train", make_spec(data, dtype), folder, device="").finish(1800))
        assert len(found) == STEPS
        return found

    return train


@pytest.mark.parametrize("dtype", list(LOSS_TOLERANCE))
def test_losses_are_those_of_the_cpu(
    data: DataSpec, tmp_path: Path, cpu_losses: Callable[[str], list[float]], dtype: str
) -> None:
    found = losses(Engine("train", make_spec(data, dtype), tmp_path).finish())
    expected = cpu_losses("4bit" if dtype == "4bit" else "float32")
    differences = [abs(one - other) for one, other in zip(found, expected, strict=True)]
    assert max(differences) < LOSS_TOLERANCE[dtype], f"largest difference {max(differences):.4f} nats"


def test_forked_engine_has_the_losses_of_the_cpu(
    data: DataSpec, tmp_path: Path, cpu_losses: Callable[[str], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", ForkingPopen)
    found = losses(Engine("train", make_spec(data), tmp_path).finish())
    assert found == pytest.approx(cpu_losses("float32"), abs=LOSS_TOLERANCE["float32"])
    assert forked_engine._servers[0].is_ready


@pytest.mark.parametrize("dtype", list(LOSS_TOLERANCE))
def test_a_resumed_training_continues_with_the_same_losses(
    data: DataSpec, tmp_path: Path, dtype: str
) -> None:
    """Up to the order of sums on the card, which CUDA does not fix."""
    spec = dataclasses.replace(make_spec(data, dtype), validation_steps=STEPS // 4)
    whole = losses(Engine("train", spec, tmp_path / "whole").finish())
    first = Engine("train", spec, tmp_path / "parts")
    first.wait_for(Checkpoint, step=STEPS // 4)
    first.process.kill()
    first.process.wait()
    events = Engine("train", spec, tmp_path / "parts").finish()
    begun = next(event.step for event in events if isinstance(event, Progress) and event.phase == "training")
    assert 0 < begun < STEPS
    # Those before the checkpoint are reported once more.
    assert losses(events) == pytest.approx(whole, abs=RESUME_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(LOSS_TOLERANCE))
def test_adapter_and_base_model_are_scored(data: DataSpec, tmp_path: Path, dtype: str) -> None:
    Engine("train", make_spec(data, dtype), tmp_path / "train").finish()
    spec = EvalSpec(
        base=BASE,
        data=data,
        adapters={"run-1": str(tmp_path / "train/arm-0/adapter")},
        max_rows=32,
        load_in_4bit=dtype == "4bit",
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
    )
    events = Engine("evaluate", spec, tmp_path / "evaluate").finish()
    (result,) = [event for event in events if isinstance(event, Result)]
    assert result.values["run-1"]["loss"] < result.values["base"]["loss"]


@pytest.mark.parametrize("dtype", list(LOSS_TOLERANCE))
def test_answers_are_those_of_the_cpu(
    data: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """An adapter that was trained in 4 bits is served on the whole base model."""
    from tests.engine.serving.chats import run_engine

    Engine("train", make_spec(data, dtype), tmp_path / "train").finish()
    (tmp_path / "adapters").mkdir()
    (tmp_path / "train/arm-0/adapter").rename(tmp_path / "adapters" / ADAPTER)
    spec = ServeSpec(
        base=BASE,
        socket=str(tmp_path / "socket"),
        adapters=str(tmp_path / "adapters"),
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
    )
    prompt = json.loads(SAMPLE_FILE.read_text().splitlines()[-1])["messages"][-2]["content"]
    answers: dict[str, list[str]] = {}
    for place, device in (("card", devices()[0]), ("cpu", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", device)
        with run_engine(spec, tmp_path / place) as engine:
            for adapter in ("", ADAPTER):
                events = engine.answer(prompt, adapter, max_tokens=16)
                text = "".join(event.text for event in events if isinstance(event, Text))
                answers.setdefault(place, []).append(text)
    assert answers["card"][0] != answers["card"][1]
    if dtype == "bfloat16":  # whose rounding may turn a close call
        assert answers["card"][1][:4] == answers["cpu"][1][:4]
    else:
        assert answers["card"] == answers["cpu"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_forecasts_of_memory_and_time_are_close(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices()[0])
    call_command("measure_forecast", count=SETTINGS_FORECAST, seed=1, dtype=dtype, device="cuda")


def test_a_training_that_does_not_fit_says_so(data: DataSpec, tmp_path: Path) -> None:
    """Fail alone; `tests/workers/recovery/test_out_of_memory.py` checks the retry."""
    rows = [
        [{"role": "user", "content": "word " * 4000}, {"role": "assistant", "content": "word " * 4000}]
    ] * 256
    long = write_canonical(tmp_path / "long", rows)
    spec = make_spec(long, per_device_train_batch_size=256, max_length=8192)
    events = Engine("train", spec, tmp_path / "run").finish(1800)
    (found,) = [event for event in events if isinstance(event, Failure)]
    assert found.code == "out_of_memory"
    assert "allocate" in found.message


@pytest.mark.parametrize("width", [64, 128])
def test_attention_of_all_rows_needs_one_call(width: int) -> None:
    import torch

    from workers.engine.training.packed import attention_of_all_rows

    pytest.importorskip("torch.nn.attention.varlen")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a card that computes in bfloat16")
    query, key = (torch.zeros(1, 1, heads, width, dtype=torch.bfloat16, device="cuda") for heads in (9, 3))
    assert attention_of_all_rows(query, key) is not None


def test_a_stopped_training_frees_its_memory(data: DataSpec, tmp_path: Path) -> None:
    card = devices()[0]
    before = used_bytes(card)
    engine = Engine("train", make_spec(data, max_steps=5000), tmp_path)
    engine.wait_for(Metrics, step=1)
    assert used_bytes(card) > before + FREED_BYTES
    engine.process.send_signal(signal.SIGINT)
    engine.finish(120)
    time.sleep(2)  # the driver frees a dead process's memory a moment later
    assert used_bytes(card) < before + FREED_BYTES


def test_each_worker_trains_on_its_own_card(data: DataSpec, tmp_path: Path) -> None:
    cards = devices()[:2]
    if len(cards) < 2:
        pytest.skip("needs two GPUs")
    for number, card in enumerate(cards):
        before = [used_bytes(each) for each in cards]
        engine = Engine("train", make_spec(data, max_steps=5000), tmp_path / str(number), device=card)
        engine.wait_for(Metrics, step=1)
        grown = [used_bytes(each) - bytes_ > FREED_BYTES for each, bytes_ in zip(cards, before, strict=True)]
        assert grown == [each == card for each in cards]
        engine.process.kill()
        engine.process.wait()
        time.sleep(2)
