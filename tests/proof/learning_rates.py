"""Compares the automatic learning rate with fixed ones, on real data and the bundled model.

    python -m tests.proof.learning_rates MODEL_FOLDER WORK_FOLDER STEPS FILE...

Imports each file and trains it with every preset at five fixed rates and the automatic one, all arms in one
process. Prints the validation loss of every arm after the last step.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from workers.contract.events import ArmEnd, Event, ProtocolError, Result, from_line
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import BaseSpec, DataSpec, ImportSpec, InspectSpec, TrainSpec, to_dict
from workers.forecasting.automatic import automatic_learning_rate
from workers.target_modules.census import Census
from workers.target_modules.presets import PRESETS, resolve
from workers.target_modules.resolution import target_spec

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
VALIDATION_ROWS = 128


def engine(kind: str, spec: dict[str, Any], out: Path) -> list[Event]:
    """Run one job of the engine and return its events."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "spec.json"
    path.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "workers.engine", kind, str(path), str(out)]
    with (out / "log").open("wb") as log:
        lines = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, check=True).stdout.splitlines()
    events: list[Event] = []
    for line in lines:
        try:
            events.append(from_line(line))
        except ProtocolError:
            continue
    return events


def result(events: list[Event]) -> dict[str, Any]:
    """Return the values of a job's Result."""
    return next(event.values for event in events if isinstance(event, Result))


def compare(model: str, work: Path, steps: int, upload: Path, census: Census) -> None:
    """Train every arm on one file and print a row of the table for each preset."""
    out = work / upload.stem
    importing = ImportSpec(upload=str(upload), filename=upload.name, tokenizer=model)
    report = result(engine("import", to_dict(importing), out / "data"))
    rates = (*RATES, automatic_learning_rate(census.hidden_size, census.model_type))
    specs = []
    for slug, preset in PRESETS.items():
        resolution = resolve(preset.roles, census)
        for rate in rates:
            learn = Hyperparameters(learning_rate=rate, max_steps=steps)
            specs.append(
                TrainSpec(
                    name=f"{slug} {rate:g}",
                    base=BaseSpec(path=model, name="bundled"),
                    data=DataSpec(path=str(out / "data"), sha256=report["sha256"]),
                    target=target_spec(resolution, learn),
                    hyperparameters=learn,
                    validation_steps=steps,
                    validation_rows=VALIDATION_ROWS,
                )
            )
    events = engine("train", {"specs": [to_dict(spec) for spec in specs]}, out / "arms")
    losses = [event.summary["validation_loss"] for event in events if isinstance(event, ArmEnd)]
    print(f"{upload.stem:14}", *(f"{rate:>8.2g}" for rate in rates), "  best - automatic")
    for place, slug in enumerate(PRESETS):
        row = losses[place * len(rates) : (place + 1) * len(rates)]
        gap = min(row[:-1]) - row[-1]
        print(f"{slug:14}", *(f"{loss:8.4f}" for loss in row), f"{gap:+8.4f}", flush=True)


if __name__ == "__main__":
    folder, work_folder, count, *files = sys.argv[1:]
    inspected = result(engine("inspect", to_dict(InspectSpec(path=folder)), Path(work_folder) / "model"))
    for file in files:
        compare(folder, Path(work_folder), int(count), Path(file), Census.from_dict(inspected["census"]))
