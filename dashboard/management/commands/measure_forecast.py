"""`manage.py measure_forecast`: train a few steps under random settings, compare forecast and measurement.

Each setting is predicted from all others (leave one out); `--seed` repeats a draw. Time is the engine's CPU
time, so that other work on the machine hardly counts; on a GPU it is that of usual steps, because the first
one loads kernels. Needs the bundled base model, no database, no broker.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from dashboard.models.catalog.dataset import SAMPLE_FILE
from dashboard.models.training.forecast import estimate_run
from workers.contract.events import (
    ArmEnd,
    Event,
    Metrics,
    Progress,
    ProtocolError,
    Result,
    Started,
    from_line,
)
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import (
    PREFIX_TYPES,
    BaseSpec,
    DataSpec,
    ImportSpec,
    InspectSpec,
    TrainSpec,
    to_dict,
)
from workers.forecasting.adapter_size import adapter_params
from workers.forecasting.calibration import MEMORY, TIME, correct
from workers.forecasting.training_cost import model_shape
from workers.forecasting.workload import RowLengths, estimate_workload
from workers.target_modules.census import Census
from workers.target_modules.presets import PRESETS, preset, resolve
from workers.target_modules.resolution import Resolution, target_spec

GOAL_MEMORY, GOAL_TIME = MEMORY.measured - 1, TIME.measured - 1  # 15 % and 25 %
MIN_SETTINGS = 3
# Values that settings are drawn from. Each setting sees ROWS rows in all: fewer would often miss long ones.
RANKS = (4, 8, 16, 32, 64, 128)
LENGTHS = (96, 128, 192, 256, 320, 384, 448, 512)
BATCHES = (2, 3, 4, 6, 8, 12, 16)
ACCUMULATIONS = (1, 1, 2, 4)
MAX_TOKENS = 2048  # tokens of a micro-batch, padding included
MAX_ROWS_PER_STEP = 16
ROWS = 32
DROPOUT_SHARE = CHECKPOINTING_SHARE = 1 / 6


def draw_settings(seed: int) -> Iterator[tuple[str, Hyperparameters]]:
    """Yield distinct settings without end: the presets in turn, everything else at random."""
    generator = random.Random(seed)  # noqa: S311 - a draw that can be repeated
    seen = set()
    for place in count():
        slug = list(PRESETS)[place % len(PRESETS)]
        hyperparameters = None
        while hyperparameters is None or (slug, hyperparameters) in seen:
            hyperparameters = _draw(generator)
        seen.add((slug, hyperparameters))
        yield slug, hyperparameters


def _draw(generator: random.Random) -> Hyperparameters:
    max_length = generator.choice(LENGTHS)
    batch = generator.choice([size for size in BATCHES if size * max_length <= MAX_TOKENS])
    times = generator.choice([steps for steps in ACCUMULATIONS if steps * batch <= MAX_ROWS_PER_STEP])
    return Hyperparameters(
        r=generator.choice(RANKS),
        lora_dropout=0.1 if generator.random() < DROPOUT_SHARE else 0.0,
        max_steps=max(2, round(ROWS / (batch * times))),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=times,
        max_length=max_length,
        gradient_checkpointing=generator.random() < CHECKPOINTING_SHARE,
    )


@dataclass(frozen=True)
class Measurement:
    """Estimate and measurement of one setting."""

    preset: str
    hyperparameters: Hyperparameters
    estimated_bytes: float
    estimated_seconds: float
    bytes: float
    seconds: float

    @property
    def description(self) -> str:
        """Return the first columns of the table."""
        values = self.hyperparameters
        rows = f"{values.per_device_train_batch_size}x{values.gradient_accumulation_steps}"
        flags = ("d" if values.lora_dropout else "") + ("c" if values.gradient_checkpointing else "")
        return f"{self.preset:12}{values.r:>4}{rows:>7}{values.max_length:>8}{values.max_steps:>7} {flags:3}"


@dataclass(frozen=True)
class Prediction:
    """Prediction of one setting from all others."""

    measurement: Measurement
    bytes: float
    seconds: float

    @property
    def memory_error(self) -> float:
        """Return the relative error; positive if the prediction was too high."""
        return self.bytes / self.measurement.bytes - 1

    @property
    def time_error(self) -> float:
        """Return the relative error; positive if the prediction was too high."""
        return self.seconds / self.measurement.seconds - 1


def cross_validate(measurements: Sequence[Measurement]) -> list[Prediction]:
    """Predict each setting with the correction factor of all others."""
    results = []
    for item in measurements:
        others = [other for other in measurements if other is not item]
        memory = correct([other.bytes / other.estimated_bytes for other in others])
        time_ = correct([other.seconds / other.estimated_seconds for other in others])
        results.append(
            Prediction(item, item.estimated_bytes * memory.factor, item.estimated_seconds * time_.factor)
        )
    return results


class Command(BaseCommand):
    """Measure the errors of forecasts on this machine."""

    help = "Train a few steps under random settings and compare predicted with measured memory and time."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--count", type=int, default=18, help="number of settings (default: 18)")
        parser.add_argument("--minutes", type=float, help="time limit in minutes")
        parser.add_argument("--seed", type=int, help="seed of the random settings")
        parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
        parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))

    def handle(self, *_args: Any, **options: Any) -> None:
        """Measure, predict and print the table. Raises CommandError if a goal is missed."""
        if options["count"] < MIN_SETTINGS:
            raise CommandError(
                f"Measure at least {MIN_SETTINGS} settings: each is predicted from the others."
            )
        seed = random.SystemRandom().randrange(10**6) if options["seed"] is None else options["seed"]
        self.stdout.write(f"{options['count']} settings drawn with --seed {seed}, {options['dtype']}.")
        with tempfile.TemporaryDirectory(prefix="graftworks-measure-") as name:
            bench = Bench(Path(name), options["dtype"], options["device"])
            measurements = list(self.measure(bench, seed, options["count"], options["minutes"]))
        if len(measurements) < MIN_SETTINGS:
            raise CommandError(
                f"Only {len(measurements)} settings were measured in that time. Allow more minutes."
            )
        results = cross_validate(measurements)
        self.table(results)
        if not self.summary(results):
            raise CommandError("A goal was missed.")

    def measure(self, bench: Bench, seed: int, most: int, minutes: float | None) -> Iterator[Measurement]:
        """Yield measurements until there are enough or time is short."""
        started, longest = time.monotonic(), 0.0
        for place, (slug, hyperparameters) in zip(range(1, most + 1), draw_settings(seed), strict=False):
            began = time.monotonic()
            if minutes is not None and began - started + longest > 60 * minutes:
                self.stdout.write(f"Time is short: {place - 1} of {most} settings were measured.")
                return
            measurement = bench.measure(slug, hyperparameters)
            longest = max(longest, time.monotonic() - began)
            self.stdout.write(
                f"measured {place:>2} of {most}: {measurement.description} {time.monotonic() - began:.0f} s"
            )
            self.stdout.flush()
            yield measurement

    def table(self, results: Sequence[Prediction]) -> None:
        """Print one line per setting."""
        self.stdout.write("")
        self.stdout.write(f"{'preset':12}{'r':>4}{'batch':>7}{'length':>8}{'steps':>7}     "
                          f"{'memory, GB':>16}{'off':>8}{'seconds':>18}{'off':>8}")  # fmt: skip
        for row in results:
            measured = row.measurement
            self.stdout.write(
                f"{measured.description} {row.bytes / 1e9:>8.2f} / {measured.bytes / 1e9:<5.2f}"
                f"{row.memory_error:>+8.1%}{row.seconds:>9.1f} / {measured.seconds:<6.1f}"
                f"{row.time_error:>+8.1%}"
            )
        self.stdout.write("Each pair: predicted / measured. d: dropout, c: gradient checkpointing.")

    def summary(self, results: Sequence[Prediction]) -> bool:
        """Print the share of good predictions and the worst error; return whether all are good."""
        good = True
        for quantity, goal, errors in (
            ("Memory", GOAL_MEMORY, [item.memory_error for item in results]),
            ("Time", GOAL_TIME, [item.time_error for item in results]),
        ):
            within = sum(abs(error) <= goal for error in errors)
            worst = max(errors, key=abs)
            self.stdout.write(f"{quantity}: {within} of {len(errors)} within {goal:.0%}, worst {worst:+.1%}.")
            good = good and within == len(errors)
        return good


class Bench:
    """Runs of the engine on the bundled model and a dataset of varied row lengths."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        self.folder, self.dtype, self.device = folder, dtype, device
        model = str(settings.BUNDLED_MODEL_DIR)
        self.base = BaseSpec(path=model, name="bundled")
        upload = folder / "rows.jsonl"
        upload.write_text("".join(f"{json.dumps(row)}\n" for row in varied_rows()))
        spec = ImportSpec(upload=str(upload), filename="rows.jsonl", tokenizer=model)
        self.report = result(self.run("import", to_dict(spec), folder / "data")[0])
        self.census = Census.from_dict(
            result(self.run("inspect", to_dict(InspectSpec(path=model)), folder / "model")[0])["census"]
        )

    def measure(self, slug: str, hyperparameters: Hyperparameters) -> Measurement:
        """Estimate one setting and train it."""
        resolution = resolve(preset(slug).roles, self.census)
        lengths = RowLengths.from_report(self.report["token_lengths"], self.report["splits"]["train"])
        kept = lengths.truncated(hyperparameters.max_length) if lengths else None
        if kept is None:
            raise CommandError(f"No row keeps its answer at {hyperparameters.max_length} tokens.")
        is_packed = self.census.model_type in PREFIX_TYPES
        workload = estimate_workload(kept, hyperparameters, is_packed=is_packed)
        trainable = adapter_params(resolution.matched, hyperparameters.r)
        shape = model_shape(self.census, resolution.matched, hyperparameters.r, trainable)
        events, seconds = self.run(
            "train", to_dict(self.spec(slug, resolution, hyperparameters)), self.folder / "out"
        )
        shutil.rmtree(self.folder / "out")  # The next setting could not continue these checkpoints.
        device = next(event.device for event in events if isinstance(event, Started))
        if not device.startswith(self.device):
            raise CommandError(f"The engine found no {self.device} device, but {device}.")
        estimate = estimate_run(shape, workload, hyperparameters, device, self.dtype, threads=1)
        summary = next(event.summary for event in events if isinstance(event, ArmEnd))
        if self.device == "cuda":
            speeds = [
                event.values["train/tokens_per_second"] for event in events if isinstance(event, Metrics)
            ]
            seconds = summary["tokens"] / statistics.median(speeds)
        return Measurement(
            preset=slug,
            hyperparameters=hyperparameters,
            estimated_bytes=estimate.memory_bytes,
            estimated_seconds=estimate.seconds.training,
            bytes=float(summary["peak_memory_bytes"]),
            seconds=seconds,
        )

    def spec(self, slug: str, resolution: Resolution, hyperparameters: Hyperparameters) -> TrainSpec:
        return TrainSpec(
            name=slug,
            base=self.base,
            data=DataSpec(path=str(self.folder / "data"), sha256=self.report["sha256"]),
            target=target_spec(resolution, hyperparameters),
            hyperparameters=hyperparameters,
            validation_rows=0,
            dtype=self.dtype,
        )

    def run(self, kind: str, spec: dict[str, Any], out_dir: Path) -> tuple[list[Event], float]:
        """Return the engine's events, and the CPU seconds between the first and the last step."""
        path = self.folder / "spec.json"
        path.write_text(json.dumps(spec))
        command = [sys.executable, "-m", "workers.engine", kind, str(path), str(out_dir)]
        own = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        if self.device == "cpu":
            own["CUDA_VISIBLE_DEVICES"] = ""
        log = self.folder / "log"
        with log.open("wb") as errors, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, cwd=settings.BASE_DIR, env=os.environ | own
        ) as child:  # fmt: skip
            events: list[Event] = []
            clock: dict[str, float] = {}
            for line in child.stdout or ():
                try:
                    events.append(from_line(line))
                except ProtocolError:
                    continue
                last = events[-1]
                if isinstance(last, Progress) and last.phase not in clock:
                    times = psutil.Process(child.pid).cpu_times()
                    clock[last.phase] = times.user + times.system
        if child.returncode:
            raise CommandError(f"The engine failed: {log.read_text(errors='replace')[-1500:]}")
        return events, clock.get("saving", 0.0) - clock.get("training", 0.0)


def result(events: list[Event]) -> dict[str, Any]:
    """Return the result of an import or inspection."""
    return next(event.values for event in events if isinstance(event, Result))


def varied_rows() -> Iterator[dict[str, str]]:
    """Yield prompts of one to eight of the sample's messages with a short answer: 30 to 500 tokens."""
    draw = random.Random(1)  # noqa: S311 - the same rows each time
    messages = [json.loads(line)["messages"] for line in SAMPLE_FILE.read_text().splitlines()]
    for number in range(400):
        parts = draw.sample(messages, draw.choice((1, 1, 2, 2, 3, 4, 6, 8)))
        prompt = "\n\n".join(message[1]["content"] for message in parts)
        yield {"prompt": f"{number}. {prompt}", "completion": parts[0][2]["content"]}
