"""A run killed five times at random moments equals one that was never killed: real processes, real kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.conftest import Recorder
from tests.engine.test_death import curve
from tests.tiny_model import colour_rows, tiny_base, tiny_target, write_canonical
from workers.contract.events import ArmEnd, Checkpoint, Event, Message, Metrics, from_line
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import TrainSpec, to_dict
from workers.engine.training.train import train

ROOT = Path(__file__).parents[3]
KILLS = 5
STEPS = 60
# Checkpoints come with the validations; with several arms the first's come most often.
INTERVAL = 4
MEASURED = (
    "train/loss",
    "validation/loss",
    "train/token_accuracy",
    "validation/token_accuracy",
    "train/grad_norm",
    "train/learning_rate",
)
CONTINUES = "Continues from step "


def make_specs(tiny_folder: Path, folder: Path, arms: int) -> list[TrainSpec]:
    data = write_canonical(folder / "data", colour_rows())
    specs = []
    for arm in range(arms):
        learn = Hyperparameters(
            r=2 + arm,
            learning_rate=5e-3 * (1 + arm),
            max_steps=STEPS - 7 * arm,
            per_device_train_batch_size=2 + arm,
            gradient_accumulation_steps=1 + arm % 2,
            lora_dropout=0.1 * arm,
            weight_decay=0.1,
            seed=arm,
            lr_scheduler_type=("cosine", "linear", "constant")[arm % 3],
        )
        specs.append(
            TrainSpec(
                name=f"arm {arm}",
                base=tiny_base(tiny_folder),
                data=data,
                target=tiny_target(learn.r),
                hyperparameters=learn,
                validation_steps=INTERVAL + arm,
                dtype="float32",
            )
        )
    return specs


def live(command: list[str], kill_after: int | None, chance: random.Random) -> tuple[list[Event], int]:
    """One process, killed a moment after so many steps; its events and its exit status."""
    events: list[Event] = []
    is_continued = any((Path(command[-1]) / "checkpoints").glob("[0-9]*"))
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.stdout is not None
        # Points of earlier lives are told again before it continues: those are no steps.
        begun, steps = not is_continued, 0
        for line in child.stdout:
            if not line.endswith(b"\n"):
                break  # cut off by the kill
            event = from_line(line)
            events.append(event)
            begun = begun or (isinstance(event, Message) and event.text.startswith(CONTINUES))
            steps += begun and isinstance(event, Metrics) and "train/loss" in event.values
            if kill_after is not None and steps >= kill_after:
                time.sleep(chance.random() * 0.01)
                child.send_signal(signal.SIGKILL)
                kill_after = None
    return events, child.returncode


def begins(events: list[Event]) -> list[int]:
    """The steps from which it said that it continues."""
    return [
        int(event.text.removeprefix(CONTINUES).rstrip("."))
        for event in events
        if isinstance(event, Message) and event.text.startswith(CONTINUES)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("arms", [pytest.param(1, marks=pytest.mark.proof), 4])
def test_run_killed_five_times_equals_uninterrupted_run(tiny_folder: Path, tmp_path: Path, arms: int) -> None:
    specs, record, chance = make_specs(tiny_folder, tmp_path, arms), Recorder(), random.Random(arms)
    ends = train(specs, tmp_path / "whole", report=record)
    (tmp_path / "spec.json").write_text(json.dumps({"specs": [to_dict(spec) for spec in specs]}))
    command = [
        sys.executable,
        "-m",
        "workers.engine",
        "train",
        str(tmp_path / "spec.json"),
        str(tmp_path / "cut"),
    ]
    told, died_at = Recorder(), 0
    for life in range(KILLS + 1):
        reached = max((event.step for event in told.of(Checkpoint)), default=0)
        is_last = life == KILLS
        events, status = live(command, None if is_last else chance.randint(3, 10) * arms, chance)
        assert status == (0 if is_last else -signal.SIGKILL)
        told.extend(events)
        begin = next(iter(begins(events)), 0)
        assert begin >= reached, "it continues from the newest checkpoint"
        # A step that was taken and not told before the kill may be repeated on top.
        assert died_at - begin <= INTERVAL, "no more is lost than since the last checkpoint"
        died_at = max(event.step for event in events if isinstance(event, Metrics))
    for arm, end in enumerate(ends):
        for name in MEASURED:
            expected = curve(record, arm, name)
            assert list(curve(told, arm, name)) == list(expected)
            assert curve(told, arm, name) == pytest.approx(expected, abs=1e-6)
        mine = [event for event in told.of(ArmEnd) if event.arm == arm][-1]
        assert (mine.outcome, mine.step, mine.summary["tokens"]) == (
            "succeeded",
            end.step,
            end.summary["tokens"],
        )
        name = f"arm-{arm}/adapter/adapter_model.safetensors"
        found, weights = load_file(tmp_path / "cut" / name), load_file(tmp_path / "whole" / name)
        apart = max(float((found[key] - weights[key]).abs().max()) for key in weights)
        print(f"arm {arm} of {arms}: the furthest that two weights lie apart is {apart}")
        assert found.keys() == weights.keys()
        assert apart <= 1e-6
        assert all(bool(torch.isfinite(value).all()) for value in found.values())
