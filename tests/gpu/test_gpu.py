"""The engine on CUDA, against the CPU: `make gpu-check` on a machine with an NVIDIA GPU.

Everything runs as the real process `python -m workers.engine` on the bundled model and the sample's rows. A
machine without a GPU fails here instead of skipping: a check that did not run has shown nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dashboard.models.catalog.dataset import SAMPLE_FILE
from tests.tiny_model import write_canonical
from workers.contract.events import ArmEnd, Checkpoint, Event, Failure, Metrics, Result, from_line
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import BaseSpec, DataSpec, EvalSpec, TargetSpec, TrainSpec, to_dict
from workers.supervision import forked_engine
from workers.supervision.forked_engine import ForkingPopen

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
BASE = BaseSpec(path=str(ROOT / ".cache/bundled/SmolLM2-135M-Instruct"), name="SmolLM2-135M-Instruct")
STEPS, RANK = 20, 16
# Largest difference of any step's loss in nats. fp32 sums in another order; bfloat16 rounds each product, as
# on the CPU; NF4 changes the weights themselves, so that only its course is compared.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "4bit": 0.6}
RESUME_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "4bit": 0.05}
FREED_BYTES = 100e6


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Fail without CUDA."""
    import torch

    assert torch.cuda.is_available(), "torch sees no CUDA device: install a CUDA build of torch and a driver."


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
    """One engine process and the events that it reported."""

    def __init__(self, kind: str, spec: Any, folder: Path, devices: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(json.dumps(to_dict(spec)))
        environment = os.environ if devices is None else os.environ | {"CUDA_VISIBLE_DEVICES": devices}
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.engine", kind, str(folder / "spec.json"), str(folder)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def wait_for(self, kind: type[Checkpoint | Metrics], step: int = 0) -> None:
        """Read events until the first of this kind at `step` or later."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = from_line(line)
            if isinstance(event, kind) and event.step >= step:
                return
        pytest.fail(f"the engine ended without a {kind.__name__}")

    def finish(self, timeout: float = 600) -> list[Event]:
        output, _ = self.process.communicate(timeout=timeout)
        self.log.close()
        return [from_line(line) for line in output.splitlines()]


def losses(events: list[Event]) -> list[float]:
    return [
        event.values["train/loss"]
        for event in events
        if isinstance(event, Metrics) and "train/loss" in event.values
    ]


def used_bytes() -> int:
    """Return the memory in use on the first card, of all processes."""
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)


@pytest.fixture(scope="module")
def cpu_losses(data: DataSpec, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    events = Engine("train", make_spec(data), tmp_path_factory.mktemp("cpu"), devices="").finish(1800)
    found = losses(events)
    assert len(found) == STEPS
    return found


@pytest.mark.parametrize("dtype", list(LOSS_TOLERANCE))
def test_losses_are_those_of_the_cpu(
    data: DataSpec, tmp_path: Path, cpu_losses: list[float], dtype: str
) -> None:
    found = losses(Engine("train", make_spec(data, dtype), tmp_path).finish())
    differences = [abs(one - other) for one, other in zip(found, cpu_losses, strict=True)]
    assert max(differences) < LOSS_TOLERANCE[dtype], f"largest difference {max(differences):.4f} nats"


def test_forked_engine_has_the_losses_of_the_cpu(
    data: DataSpec, tmp_path: Path, cpu_losses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", ForkingPopen)
    found = losses(Engine("train", make_spec(data), tmp_path).finish())
    assert found == pytest.approx(cpu_losses, abs=LOSS_TOLERANCE["float32"])
    assert forked_engine._servers[0].is_ready


@pytest.mark.parametrize("dtype", list(LOSS_TOLERANCE))
def test_a_resumed_training_continues_with_the_same_losses(
    data: DataSpec, tmp_path: Path, dtype: str
) -> None:
    """Up to the order of sums on the card, which CUDA does not fix."""
    whole = losses(Engine("train", make_spec(data, dtype), tmp_path / "whole").finish())
    first = Engine("train", make_spec(data, dtype), tmp_path / "parts")
    first.wait_for(Checkpoint, step=STEPS // 4)
    first.process.kill()
    first.finish()
    rest = losses(Engine("train", make_spec(data, dtype), tmp_path / "parts").finish())
    assert 0 < len(rest) < STEPS
    assert rest == pytest.approx(whole[-len(rest) :], abs=RESUME_TOLERANCE[dtype])


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


def test_a_training_that_does_not_fit_says_so(data: DataSpec, tmp_path: Path) -> None:
    """The supervisor then tries it again with a smaller batch."""
    rows = [
        [{"role": "user", "content": "word " * 8000}, {"role": "assistant", "content": "word " * 8000}]
    ] * 64
    long = write_canonical(tmp_path / "long", rows)
    spec = make_spec(long, per_device_train_batch_size=1024, max_length=16_384)
    events = Engine("train", spec, tmp_path / "run").finish(1800)
    codes = [event.code for event in events if isinstance(event, Failure)]
    codes += [event.code for event in events if isinstance(event, ArmEnd)]
    assert "out_of_memory" in codes


def test_a_stopped_training_frees_its_memory(data: DataSpec, tmp_path: Path) -> None:
    before = used_bytes()
    engine = Engine("train", make_spec(data, max_steps=5000), tmp_path)
    engine.wait_for(Metrics, step=1)
    assert used_bytes() > before + FREED_BYTES
    engine.process.send_signal(signal.SIGINT)
    engine.finish(120)
    time.sleep(2)  # the driver frees a dead process's memory a moment later
    assert used_bytes() < before + FREED_BYTES


def test_each_worker_trains_on_its_own_card(data: DataSpec, tmp_path: Path) -> None:
    import pynvml
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    engines = [
        Engine("train", make_spec(data, max_steps=5000), tmp_path / device, devices=device) for device in "01"
    ]
    for engine in engines:
        engine.wait_for(Metrics, step=1)
    pynvml.nvmlInit()
    for index, engine in enumerate(engines):
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        processes = {one.pid for one in pynvml.nvmlDeviceGetComputeRunningProcesses(card)}
        assert processes & {one.process.pid for one in engines} == {engine.process.pid}
    for engine in engines:
        engine.process.send_signal(signal.SIGINT)
        engine.finish(120)
