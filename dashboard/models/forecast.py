"""What a run will need and options long it will take on each device: formulas corrected by finished runs.

One answer for the form, the launch and the API. Knows nothing of pages; reads rows of nodes and calibrations,
and what a dataset's import has measured.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.conf import settings

from dashboard.models.base_model import BaseModel
from dashboard.models.calibration import Calibration, CalibrationIndex
from dashboard.models.worker_node import WorkerNode
from workers import estimates
from workers.census import Census
from workers.errors import TargetError
from workers.estimates import ComputeOptions, ModelShape, TimeEstimate
from workers.forecast import adapter_bytes, adapter_params
from workers.hyperparameters import Hyperparameters
from workers.targets import Resolution
from workers.workload import PREFIX_TYPES, RowLengths, Workload, estimate_workload

if TYPE_CHECKING:
    from dashboard.models.dataset import DatasetVersion
    from dashboard.models.training_run import TrainingRun

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
NO_DEVICE = "CPU"
# What others keep of a device's memory: the system and the web on a CPU, the driver on a card.
RESERVED = {"cpu": 1_500_000_000, "cuda": 900_000_000}
Range = dict[str, float]


@dataclass(frozen=True)
class RawEstimate:
    """One run on one device by formula alone."""

    device: str
    dtype: str
    base_model_id: int
    setting: str
    memory_bytes: float
    seconds: TimeEstimate


@dataclass(frozen=True)
class DeviceForecast:
    """One run on one device, corrected. `memory_bytes` is the device's own; 0 where nobody knows it."""

    device: str
    memory_bytes: int
    usable_bytes: int
    peak_memory_bytes: Range
    seconds: Range
    is_rough: bool

    @property
    def bar(self) -> dict[str, float]:
        """Percent of the device that it expects to fill, and that it may."""
        whole = self.memory_bytes or 1
        return {name: min(100.0, 100 * value / whole) for name, value in self.peak_memory_bytes.items()}

    @property
    def fit(self) -> str:
        """`fits`, `tight` or `too_large`; "" for a device of unknown size."""
        if not self.memory_bytes:
            return ""
        if self.peak_memory_bytes["high"] <= self.usable_bytes:
            return "fits"
        return "tight" if self.peak_memory_bytes["expected"] <= self.usable_bytes else "too_large"


@dataclass(frozen=True)
class Forecast:
    """Everything that can be said before the start."""

    trainable_parameters: int
    adapter_bytes: int
    half_adapter_bytes: int
    disk_bytes: int
    tokens: int
    rows_cut: int | None
    rows_lost: int | None
    train_rows: int
    devices: tuple[DeviceForecast, ...] = field(default=())
    starts_at: datetime | None = None

    @property
    def main(self) -> DeviceForecast:
        """The device that the numbers of one line stand for."""
        return main(self.devices)

    @property
    def cut_share(self) -> float | None:
        """The part of the training rows whose answer would be cut."""
        return None if self.rows_cut is None or not self.train_rows else self.rows_cut / self.train_rows

    def to_dict(self) -> dict[str, Any]:
        """What a run keeps and the API answers."""
        main = self.main
        return {
            "trainable_parameters": self.trainable_parameters,
            "adapter_bytes": self.adapter_bytes,
            "peak_memory_bytes": {name: round(value) for name, value in main.peak_memory_bytes.items()},
            "seconds": {name: round(value, 1) for name, value in main.seconds.items()},
            "rows_cut": self.rows_cut,
            "starts_at": self.starts_at.isoformat() if self.starts_at else None,
        }


def main(devices: tuple[DeviceForecast, ...]) -> DeviceForecast:
    """The quickest device on which the run fits, else the one with the most memory."""
    fitting = [one for one in devices if one.fit != "too_large"]
    if fitting:
        return min(fitting, key=lambda one: one.seconds["expected"])
    return max(devices, key=lambda one: one.memory_bytes)


@dataclass(frozen=True)
class RunForecaster:
    """Forecasts of runs on one base model and dataset; asks the database once, then only reckons."""

    base_model: BaseModel
    version: DatasetVersion | None
    nodes: tuple[tuple[str, int], ...]
    calibrations: list[Calibration]
    packing: frozenset[str] = frozenset()  # devices that can keep a base model in 4 bits

    @classmethod
    def load(cls, base_model: BaseModel, version: DatasetVersion | None) -> RunForecaster:
        """With the devices that train now, else the one that trained last."""
        rows = Calibration.objects.usable()
        nodes = tuple(
            WorkerNode.objects.alive()
            .filter(kind=WorkerNode.Kind.WORKER, queue="gpu")
            .exclude(device="")
            .values_list("device", "memory_bytes")
            .distinct()
        )
        last = rows[0].device if rows else NO_DEVICE
        packing = frozenset(WorkerNode.objects.supporting_4bit().values_list("device", flat=True))
        return cls(base_model, version, nodes or ((last, 0),), rows, packing)

    def for_base_model(self, base_model: BaseModel) -> RunForecaster:
        """With the same devices and measurements, for another model before its dataset is chosen."""
        return dataclasses.replace(self, base_model=base_model, version=None)

    def forecast(
        self, resolution: Resolution, learn: Hyperparameters, starts_at: datetime | None = None
    ) -> Forecast:
        """The whole forecast of one run. The resolution must not be a refusal."""
        shape = self.shape(resolution, learn)
        rows = self.rows(learn)
        kept = rows.kept(learn.max_length) or full_rows(rows.rows, learn.max_length)
        workload = self.workload(kept, learn)
        resolution = resolution.shaped(learn)
        devices = self.device_forecasts(shape, workload, learn)
        width = adapter_width(self.dtype_on(main(devices).device), learn)
        weights = adapter_bytes(resolution.matched, learn.r, dtype_bytes=width)
        cut = self.cut(learn.max_length)
        return Forecast(
            trainable_parameters=shape.trainable,
            adapter_bytes=weights,
            half_adapter_bytes=adapter_bytes(resolution.matched, learn.r, dtype_bytes=2),
            disk_bytes=estimates.disk_bytes(shape.trainable, weights),
            tokens=round(workload.seen),
            rows_cut=cut,
            rows_lost=None if cut is None else min(cut, rows.rows - kept.rows),
            train_rows=rows.rows if self.version else 0,
            devices=devices,
            starts_at=starts_at,
        )

    def forecast_best_device(self, resolution: Resolution, learn: Hyperparameters) -> DeviceForecast:
        """How the run would do on the device that suits it; the rest of its forecast is left out."""
        rows = self.rows(learn)
        kept = rows.kept(learn.max_length) or full_rows(rows.rows, learn.max_length)
        return main(self.device_forecasts(self.shape(resolution, learn), self.workload(kept, learn), learn))

    def cut(self, max_length: int) -> int | None:
        """Training rows whose answer would be cut at that length; None where lengths are not known."""
        if self.version is None or not self._lengths():
            return None
        rows = RowLengths.from_report(self._lengths(), int(self.version.splits.get("train", 0)))
        return round(rows.rows * rows.cut(max_length)) if rows else None

    def device_forecasts(
        self, shape: ModelShape, workload: Workload, learn: Hyperparameters
    ) -> tuple[DeviceForecast, ...]:
        """One run on every device."""
        able = [node for node in self.nodes if not learn.load_in_4bit or node[0] in self.packing]
        return tuple(
            self.device_forecast(name, memory, shape, workload, learn) for name, memory in able or self.nodes
        )

    def device_forecast(
        self, device: str, memory_bytes: int, shape: ModelShape, workload: Workload, learn: Hyperparameters
    ) -> DeviceForecast:
        """One run on one device."""
        estimate = self.estimate(
            device, self.dtype_on(device), device_threads(device), shape, workload, learn
        )
        found = self.lessons.corrections(estimate)
        parts = estimate.seconds
        steps = found.speed.span(parts.training + parts.validation)
        other = found.other.span(parts.start + parts.saving)
        reserved = RESERVED[device_kind(device)]
        return DeviceForecast(
            device=device,
            memory_bytes=memory_bytes,
            usable_bytes=max(0, memory_bytes - reserved),
            peak_memory_bytes=found.memory.span(estimate.memory_bytes),
            seconds={name: steps[name] + other[name] for name in steps},
            is_rough=found.speed.is_rough or found.memory.is_rough,
        )

    def estimate(
        self,
        device: str,
        dtype: str,
        threads: int,
        shape: ModelShape,
        workload: Workload,
        learn: Hyperparameters,
    ) -> RawEstimate:
        """By formula alone."""
        options = ComputeOptions(
            dtype_bytes=DTYPE_BYTES.get(dtype, 4),
            on_cuda=device_kind(device) == "cuda",
            drops=learn.lora_dropout > 0,
            recomputes=learn.gradient_checkpointing,
            adapter_bytes=adapter_width(dtype, learn),
            in_4bit=learn.load_in_4bit,
        )
        parts = estimates.estimate_memory(shape, workload, options)
        speed = estimates.typical_operations_per_second(device, threads, options.dtype_bytes)
        modules = sum(one.modules for one in shape.adapted)
        return RawEstimate(
            device=device,
            dtype=dtype,
            base_model_id=self.base_model.pk,
            setting=setting_of(modules, learn),
            memory_bytes=sum(parts.values()),
            seconds=estimates.estimate_time(shape, workload, speed, options),
        )

    def shape(self, resolution: Resolution, learn: Hyperparameters) -> ModelShape:
        """The base model's numbers with this adapter on it."""
        trainable = adapter_params(resolution.shaped(learn).matched, learn.r)
        return estimates.model_shape(self.census, resolution.matched, learn.r, trainable)

    @functools.cached_property
    def census(self) -> Census:
        """The base model's, read once."""
        return self.base_model.counted()

    @functools.cached_property
    def lessons(self) -> CalibrationIndex:
        """What the calibrations teach, sorted once."""
        return CalibrationIndex(self.calibrations)

    def rows(self, learn: Hyperparameters) -> RowLengths:
        """The dataset's rows; without one, or without measured lengths, all as long as may be."""
        train_rows = int(self.version.splits.get("train", 0)) if self.version else 0
        found = RowLengths.from_report(self._lengths(), train_rows)
        return found or full_rows(max(1, train_rows or learn.rows_per_step), learn.max_length)

    def workload(self, kept: RowLengths, learn: Hyperparameters) -> Workload:
        """What the run computes."""
        shares = self.census.model_type in PREFIX_TYPES and not learn.gradient_checkpointing
        held_out = int(self.version.splits.get("validation", 0)) if self.version else 0
        return estimate_workload(kept, learn, shares=shares, validation_rows=held_out)

    def dtype_on(self, device: str) -> str:
        """The number format that the engine chose there last; before the first run, the usual one."""
        usual = "bfloat16" if device_kind(device) == "cuda" else "float32"
        return next((row.dtype for row in self.calibrations if row.device == device), usual)

    def _lengths(self) -> dict[str, Any]:
        return dict(self.version.report.get("token_lengths") or {}) if self.version else {}


def full_rows(rows: int, max_length: int) -> RowLengths:
    """Rows that all fill the maximum length, a quarter of it learned."""
    length = float(max_length)
    return RowLengths(rows, (length, length), (length, length), max(1.0, length / 4))


def adapter_width(dtype: str, learn: Hyperparameters) -> int:
    """Bytes per number of the adapter on a base of that number format."""
    return 4 if learn.autocast_adapter_dtype else DTYPE_BYTES.get(dtype, 4)


def setting_of(modules: int, learn: Hyperparameters) -> str:
    """Return what sets a run apart beyond its size: modules, and what is kept or computed twice."""
    ways = [f"{modules} modules"]
    ways += ["dropout"] if learn.lora_dropout else []
    ways += ["computed twice"] if learn.gradient_checkpointing else []
    ways += ["DoRA"] if learn.use_dora else []
    ways += ["base in 4 bits"] if learn.load_in_4bit else []
    ways += [] if learn.autocast_adapter_dtype else ["adapter as the base"]
    return ", ".join(ways)


def device_kind(device: str) -> str:
    """`cpu` or `cuda`."""
    return "cpu" if device.lower().startswith("cpu") else "cuda"


def device_threads(device: str) -> int:
    """Threads that the engine takes on a node that calls itself "CPU, 8 cores"."""
    cores = re.search(r"(\d+) core", device)
    return int(settings.ENGINE_THREADS) or max(1, int(cores.group(1)) - 1 if cores else 1)


def expected_seconds(forecast: dict[str, Any]) -> float:
    """The time that a run's stored forecast expects; 0 where it says nothing."""
    return float((forecast.get("seconds") or {}).get("expected", 0.0))


def record_calibration(run: TrainingRun) -> Calibration | None:
    """Keep what a run measured beside what is reckoned for it; None for a run that teaches nothing.

    A run of several attempts or arms, or with settings changed on its way, has no clear time of its own.
    """
    measured, job = run.measured, run.job
    needed = ("peak_memory_bytes", "seconds", "wall_seconds", "dtype", "device")
    if job is None or job.attempt > 1 or run.adjustments or job.training_runs.count() > 1:
        return None
    if not all(measured.get(name) for name in needed):
        return None
    node = WorkerNode.objects.filter(name=job.worker).exclude(device="").first()
    device = node.device if node else str(measured["device"])
    learn = Hyperparameters(**run.hyperparameters)
    forecaster = RunForecaster(run.base_model, run.dataset_version, ((device, 0),), [])
    try:
        resolution = run.target_module_config.resolve(run.base_model)
        shape = forecaster.shape(resolution, learn)
    except TargetError:
        return None  # counted by another version since
    if resolution.refusal:
        return None
    kept = forecaster.rows(learn).kept(learn.max_length)
    if kept is None:
        return None
    threads = int(measured.get("threads") or device_threads(device))
    workload = forecaster.workload(kept, learn)
    estimate = forecaster.estimate(device, str(measured["dtype"]), threads, shape, workload, learn)
    parts = estimate.seconds
    told = run.forecast
    return Calibration.objects.create(
        run=run,
        base_model=run.base_model,
        device=device[:120],
        dtype=estimate.dtype,
        setting=estimate.setting,
        formula=estimates.FORMULA,
        estimated_memory_bytes=round(estimate.memory_bytes),
        estimated_training_seconds=parts.training,
        estimated_validation_seconds=parts.validation,
        estimated_other_seconds=parts.start + parts.saving,
        expected_memory_bytes=told.get("peak_memory_bytes", {}).get("expected", 0),
        expected_seconds=expected_seconds(told),
        memory_bytes=int(measured["peak_memory_bytes"]),
        training_seconds=float(measured["seconds"]),
        seconds=float(measured["wall_seconds"]),
    )
