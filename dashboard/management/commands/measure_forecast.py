"""`manage.py measure_forecast`: trains a few steps under many settings and prints predicted against measured.

Each setting is predicted from all the others (leave one out), as an installation would that has run them.
Time is the engine's processor time, so that other work on the machine does not count. Needs the bundled base
model, no database and no broker; takes minutes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from dashboard.models.dataset import SAMPLE_FILE
from workers import estimates
from workers.calibration import MEMORY, TIME, Observation, Prior, correction
from workers.census import Census
from workers.events import ArmEnd, Event, Progress, ProtocolError, Result, from_line
from workers.forecast import adapter_params
from workers.presets import preset, resolve
from workers.specs import BaseSpec, DataSpec, Hyperparameters, ImportSpec, InspectSpec, TrainSpec, to_dict
from workers.targets import target_spec
from workers.workload import PREFIX_TYPES, RowLengths, load_of

GOAL_MEMORY, GOAL_TIME = 0.15, 0.25
# Preset, r, batch, accumulation, max_length, dropout, layers computed twice: a few steps each.
SETTINGS: tuple[tuple[str, int, int, int, int, float, bool], ...] = (
    ("efficient", 16, 8, 1, 256, 0.0, False),
    ("efficient", 16, 4, 2, 512, 0.0, False),
    ("efficient", 64, 2, 4, 512, 0.0, False),
    ("efficient", 8, 16, 1, 128, 0.0, False),
    ("balanced", 16, 8, 1, 256, 0.0, False),
    ("balanced", 8, 4, 1, 512, 0.0, False),
    ("query_value", 16, 4, 2, 256, 0.0, False),
    ("query_value", 32, 8, 1, 128, 0.0, False),
    ("attention", 16, 4, 1, 512, 0.0, False),
    ("attention", 64, 2, 4, 256, 0.0, False),
    ("mlp", 16, 8, 1, 128, 0.0, False),
    ("mlp", 8, 2, 2, 512, 0.0, False),
    ("quality", 16, 4, 1, 256, 0.0, False),
    ("quality", 8, 8, 1, 256, 0.0, False),
    ("quality", 128, 4, 2, 128, 0.0, False),
    ("quality", 16, 4, 1, 256, 0.1, False),
    ("efficient", 16, 8, 1, 256, 0.0, True),
    ("quality", 16, 8, 1, 256, 0.0, True),
)


@dataclass(frozen=True)
class Measured:
    """One setting: reckoned by formula and measured."""

    setting: str
    words: str
    reckoned_bytes: float
    reckoned_seconds: float
    bytes: float
    seconds: float


class Command(BaseCommand):
    """Measure how far forecasts are off on this machine."""

    help = "Train a few steps under many settings and print predicted against measured memory and time."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """How much, and in which number format."""
        parser.add_argument("--steps", type=int, default=6, help="optimizer steps of each setting")
        parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
        parser.add_argument(
            "--first", type=int, default=len(SETTINGS), help="how many settings, from the first"
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        """Measure, predict each from the others, print the table, and fail when a goal is missed."""
        with tempfile.TemporaryDirectory(prefix="graftworks-measure-") as name:
            bench = Bench(Path(name), options["steps"], options["dtype"])
            found = []
            for place in SETTINGS[: options["first"]]:
                found.append(bench.measure(*place))
                self.stdout.write(f"measured {found[-1].words}")
                self.stdout.flush()
        errors = list(self.table(found))
        memory, time = (max(abs(error[which]) for error in errors) for which in (0, 1))
        self.stdout.write(f"Largest error: memory {memory:.1%} (goal {GOAL_MEMORY:.0%}), time {time:.1%} "
                          f"(goal {GOAL_TIME:.0%}), over {len(found)} settings.")  # fmt: skip
        if memory > GOAL_MEMORY or time > GOAL_TIME:
            raise CommandError("A goal was missed.")

    def table(self, found: list[Measured]) -> Iterator[tuple[float, float]]:
        """One line per setting; the errors as shares."""
        self.stdout.write(f"{'setting':44}{'memory, GB':>22}{'off':>8}{'CPU seconds':>20}{'off':>8}")
        for one in found:
            others = [other for other in found if other is not one]
            size = one.reckoned_bytes * factor(others, one, MEMORY, "bytes")
            seconds = one.reckoned_seconds * factor(others, one, TIME, "seconds")
            errors = size / one.bytes - 1, seconds / one.seconds - 1
            self.stdout.write(
                f"{one.words:44}{size / 1e9:>10.2f} / {one.bytes / 1e9:<9.2f}{errors[0]:>+8.1%}"
                f"{seconds:>9.1f} / {one.seconds:<8.1f}{errors[1]:>+8.1%}"
            )
            yield errors


def factor(others: list[Measured], one: Measured, prior: Prior, what: str) -> float:
    """What the others say about this one."""
    seen = [
        Observation(
            "here", "bundled", other.setting, getattr(other, what) / getattr(other, f"reckoned_{what}")
        )
        for other in others
    ]
    return correction(seen, "here", "bundled", one.setting, prior).factor


class Bench:
    """A dataset of varied lengths, the bundled model's census, and runs of the engine on both."""

    def __init__(self, folder: Path, steps: int, dtype: str) -> None:
        self.folder, self.steps, self.dtype = folder, steps, dtype
        model = str(settings.BUNDLED_MODEL_DIR)
        self.base = BaseSpec(path=model, name="bundled")
        upload = folder / "rows.jsonl"
        upload.write_text("".join(f"{json.dumps(row)}\n" for row in varied_rows()))
        spec = ImportSpec(upload=str(upload), filename="rows.jsonl", tokenizer=model)
        self.report = result(self.run("import", to_dict(spec), folder / "data")[0])
        self.census = Census.from_dict(
            result(self.run("inspect", to_dict(InspectSpec(path=model)), folder / "model")[0])["census"]
        )

    def measure(
        self, slug: str, r: int, batch: int, times: int, max_length: int, dropout: float, again: bool
    ) -> Measured:
        """Reckon one setting, then train it."""
        learn = Hyperparameters(
            r=r,
            lora_dropout=dropout,
            max_steps=self.steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=times,
            max_length=max_length,
            gradient_checkpointing=again,
        )
        resolution = resolve(preset(slug).roles, self.census)
        lengths = RowLengths.from_report(self.report["token_lengths"], self.report["splits"]["train"])
        kept = lengths.kept(max_length) if lengths else None
        if kept is None:
            raise CommandError(f"No row keeps its answer at {max_length} tokens.")
        shares = self.census.model_type in PREFIX_TYPES and not again
        load = load_of(kept, learn, shares=shares)
        trainable = adapter_params(resolution.matched, r)
        sizes = estimates.shape(self.census, resolution.matched, r, trainable)
        width = {"float32": 4, "bfloat16": 2}[self.dtype]
        how = estimates.How(dtype_bytes=width, drops=dropout > 0, recomputes=again)
        parts = estimates.memory(sizes, load, how)
        speed = estimates.operations_per_second("cpu", 1, width)
        spec = TrainSpec(
            name=slug,
            base=self.base,
            data=DataSpec(path=str(self.folder / "data"), sha256=self.report["sha256"]),
            target=target_spec(resolution, learn),
            hyperparameters=learn,
            validation_rows=0,
            dtype=self.dtype,
        )
        out_dir = self.folder / "out"
        events, seconds = self.run("train", to_dict(spec), out_dir)
        shutil.rmtree(out_dir)  # with its checkpoints, which the next setting could not continue
        summary = next(event.summary for event in events if isinstance(event, ArmEnd))
        drops = (f", dropout {dropout}" if dropout else "") + (", computed twice" if again else "")
        return Measured(
            setting=f"{resolution.modules} modules{drops}",
            words=f"{slug} r {r}, {batch} x {times} rows, {max_length} tokens{drops}",
            reckoned_bytes=sum(parts.values()),
            reckoned_seconds=estimates.seconds(sizes, load, speed, how).training,
            bytes=float(summary["peak_memory_bytes"]),
            seconds=seconds,
        )

    def run(self, kind: str, spec: dict[str, Any], out_dir: Path) -> tuple[list[Event], float]:
        """The engine's events, and the processor time between the first and the last step."""
        path = self.folder / "spec.json"
        path.write_text(json.dumps(spec))
        command = [sys.executable, "-m", "workers.engine", kind, str(path), str(out_dir)]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        log = self.folder / "log"
        with log.open("wb") as errors, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, cwd=settings.BASE_DIR, env=os.environ | threads
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
    """What an import or inspection found."""
    return next(event.values for event in events if isinstance(event, Result))


def varied_rows() -> Iterator[dict[str, str]]:
    """Prompts of one to six of the sample's messages with a short answer: 30 to 500 tokens."""
    draw = random.Random(1)  # noqa: S311 - the same rows each time
    messages = [json.loads(line)["messages"] for line in SAMPLE_FILE.read_text().splitlines()]
    for number in range(400):
        parts = draw.sample(messages, draw.choice((1, 1, 2, 2, 3, 4, 6, 8)))
        prompt = "\n\n".join(message[1]["content"] for message in parts)
        yield {"prompt": f"{number}. {prompt}", "completion": parts[0][2]["content"]}
