"""Writes a base model with an adapter merged into it, as one file: a zip of a model folder, or GGUF.

PEFT merges; layers that the adapter changes are merged in float32, so that the result is rounded once, when
it is written. Everything happens in memory of the CPU. Knows nothing of rows, hubs or downloads.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from workers.contract.errors import DiskFull, ModelError, OutOfMemory
from workers.contract.events import Progress, Report, Result, ShouldStop
from workers.contract.specs import ExportSpec
from workers.engine import runtime
from workers.engine.base_models.model import check_folder, load_base, read_config
from workers.engine.exporting import gguf_model, model_folder
from workers.engine.generation.adapters import attach, check_adapter
from workers.engine.runtime import stop_if_asked
from workers.engine.training.artifacts import file_sha256, sync
from workers.forecasting.export_cost import forecast_export

FOLDER = "export"


def export(
    spec: ExportSpec, out_dir: Path, *, report: Report, should_stop: ShouldStop, disk_reserve: int
) -> None:
    """Write `out_dir/export/NAME.zip` or `NAME.gguf`, and report its size and SHA-256."""
    check(spec, out_dir, disk_reserve)
    model = merge(spec, report, should_stop)
    folder = new_folder(out_dir)
    write = gguf_model.write_gguf if spec.format.startswith("gguf") else model_folder.write_zip
    path = write(model, spec, folder, report, should_stop)
    path.chmod(0o640)
    report(Progress("checking"))
    facts = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    sync(path)
    sync(folder)
    report(Result({"files": {path.name: facts}}))


def check(spec: ExportSpec, out_dir: Path, disk_reserve: int) -> None:
    """Raise RunError if the export cannot be written, before anything is loaded."""
    check_folder(spec.base)
    check_adapter(Path(spec.adapter))
    if spec.format.startswith("gguf"):
        gguf_model.check(spec)
    check_room(spec, out_dir, disk_reserve)


def new_folder(out_dir: Path) -> Path:
    """Return the empty folder of the result."""
    folder = out_dir / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o750)
    return folder


def check_room(spec: ExportSpec, out_dir: Path, disk_reserve: int) -> None:
    """Raise DiskFull or OutOfMemory if the file or the merged model would not fit."""
    folder = Path(spec.base.path)
    weights = [path.stat().st_size for path in folder.glob("*.safetensors")]
    dtype = stored_dtype(folder)
    parameters = sum(weights) // dtype.itemsize
    forecast = forecast_export(
        spec.format,
        parameters,
        stored_dtype=str(dtype).removeprefix("torch."),
        changed=0,
        tokenizer_bytes=0,
    )
    free = shutil.disk_usage(out_dir).free
    if free < forecast.file_bytes + disk_reserve:
        raise DiskFull(
            f"This export needs {_gigabytes(forecast.file_bytes)} of disk space and "
            f"{_gigabytes(disk_reserve)} in reserve, but only {_gigabytes(free)} are free."
        )
    available = runtime.available_bytes(torch.device("cpu"))
    if available < forecast.memory_bytes:
        raise OutOfMemory(
            f"This export needs {_gigabytes(forecast.memory_bytes)} of memory, but only "
            f"{_gigabytes(available)} are free on the worker's machine."
        )


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the number format in which a model's weights are stored."""
    dtype = read_config(folder).dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32


def merge(spec: ExportSpec, report: Report, should_stop: ShouldStop) -> Any:
    """Return the base model with the adapter's changes in its weights; changed layers are float32."""
    report(Progress("loading"))
    base = load_base(spec.base, stored_dtype(Path(spec.base.path)), torch.device("cpu"))
    stop_if_asked(should_stop)
    embeddings = (base.get_input_embeddings(), base.get_output_embeddings())
    is_tied = embeddings[1] is not None and embeddings[0].weight is embeddings[1].weight
    model = attach(base, Path(spec.adapter), FOLDER)
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    if is_tied and any(layer.get_base_layer() in embeddings for layer in layers):
        raise ModelError(
            "This adapter changes the output head, and this base model uses the head's weights as its "
            "embeddings too. Merged, they would change both. Use the adapter without merging it."
        )
    for done, layer in enumerate(layers):
        stop_if_asked(should_stop)
        layer.get_base_layer().float()
        report(Progress("merging", done, len(layers)))
    merged = model.merge_and_unload(safe_merge=True)
    stop_if_asked(should_stop)
    return merged


def _gigabytes(count: int) -> str:
    return f"{count / 10**9:,.2f} GB"
