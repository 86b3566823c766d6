"""Memory and time of a run on each device: estimates corrected by finished runs.

The form, the launch and the API all use `RunForecaster`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.conf import settings

from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.queue_forecast import estimate_next_start
from dashboard.models.jobs.worker_node import WorkerNode
from dashboard.models.training.calibration import Calibration, corrections
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import PREFIX_TYPES
from workers.forecasting import training_cost
from workers.forecasting.adapter_size import adapter_bytes, adapter_params
from workers.forecasting.calibration import MEMORY, TIME
from workers.forecasting.training_cost import (
    ComputeOptions,
    ModelShape,
    TimeEstimate,
    device_kind,
)
from workers.forecasting.workload import RowLengths, Workload, estimate_workload
from workers.target_modules.census import Census
from workers.target_modules.resolution import Resolution

if TYPE_CHECKING:
    from dashboard.models.catalog.dataset import DatasetVersion
    from dashboard.models.training.training_run import TrainingRun

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
DEFAULT_DEVICE = "CPU"
# Memory that the system and the web processes keep on a CPU, and the driver on a card.
RESERVED_BYTES = {"cpu": 1_500_000_000, "cuda": 900_000_000}
Range = dict[str, float]


@dataclass(frozen=True)
class RawEstimate:
    """Memory and time of one run on one device by formula alone."""

    memory_bytes: float
    seconds: TimeEstimate


@dataclass(frozen=True)
class DeviceForecast:
    """Corrected memory and time of one run on one device. `memory_bytes` is the device's; 0 if unknown."""

    device: str
    memory_bytes: int
    usable_bytes: int
    peak_memory_bytes: Range
    seconds: Range
    is_rough: bool

    @property
    def memory_percent(self) -> Range:
        """Return the percentage of the device's memory that the run needs."""
        whole = self.memory_bytes or 1
        return {name: min(100.0, 100 * value / whole) for name, value in self.peak_memory_bytes.items()}

    @property
    def fit(self) -> str:
        """Return `fits`, `tight` or `too_large`; "" for a device of unknown size."""
        if not self.memory_bytes:
            return ""
        if self.peak_memory_bytes["high"] <= self.usable_bytes:
            return "fits"
        return "tight" if self.peak_memory_bytes["expected"] <= self.usable_bytes else "too_large"


@dataclass(frozen=True)
class Forecast:
    """Sizes, tokens, and memory and time on every device, of one run before it starts."""

    trainable_parameters: int
    adapter_bytes: int
    bf16_adapter_bytes: int
    disk_bytes: int
    tokens: int
    rows_cut: int | None
    rows_lost: int | None
    train_rows: int
    devices: tuple[DeviceForecast, ...]
    starts_at: datetime | None = None

    @property
    def main(self) -> DeviceForecast:
        """Return the device that a single line of numbers stands for."""
        return best_device(self.devices)

    @property
    def cut_share(self) -> float | None:
        """Share of the training rows whose answer is cut; None if unknown."""
        return None if self.rows_cut is None or not self.train_rows else self.rows_cut / self.train_rows

    def to_dict(self) -> dict[str, Any]:
        """Return what a run stores and the API answers."""
        main = self.main
        return {
            "trainable_parameters": self.trainable_parameters,
            "adapter_bytes": self.adapter_bytes,
            "peak_memory_bytes": {name: round(value) for name, value in main.peak_memory_bytes.items()},
            "seconds": {name: round(value, 1) for name, value in main.seconds.items()},
            "rows_cut": self.rows_cut,
            "starts_at": self.starts_at.isoformat() if self.starts_at else None,
        }


def best_device(devices: Sequence[DeviceForecast]) -> DeviceForecast:
    """Return the quickest device on which the run fits, else the one with the most memory."""
    fitting = [device for device in devices if device.fit != "too_large"]
    if fitting:
        return min(fitting, key=lambda device: device.seconds["expected"])
    return max(devices, key=lambda device: device.memory_bytes)


@dataclass(frozen=True)
class RunForecaster:
    """Forecasts of runs on one base model and dataset. Queries the database in `load` alone."""

    base_model: BaseModel
    version: DatasetVersion | None
    devices: tuple[tuple[str, int], ...] = ()  # name and bytes of memory
    calibrations: Sequence[Calibration] = ()
    quantizing_devices: frozenset[str] = frozenset()  # that can keep a base model in 4 bits
    validation_version: DatasetVersion | None = None  # None: validation rows of `version`

    @classmethod
    def load(
        cls,
        base_model: BaseModel,
        version: DatasetVersion | None,
        validation_version: DatasetVersion | None = None,
    ) -> RunForecaster:
        """Return a forecaster for the devices that train now, else for the one that trained last."""
        calibrations = Calibration.objects.usable()
        workers = WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.WORKER)
        nodes = list(workers.values_list("queue", "device", "memory_bytes", "loads_4bit"))
        trains = ((device, memory) for queue, device, memory, _loads in nodes if queue == Job.Queue.GPU)
        devices = tuple(dict.fromkeys(pair for pair in trains if pair[0]))
        quantizing = frozenset(device for _queue, device, _memory, loads_4bit in nodes if loads_4bit)
        last = calibrations[0].device if calibrations else DEFAULT_DEVICE
        return cls(base_model, version, devices or ((last, 0),), calibrations, quantizing, validation_version)

    def for_base_model(self, base_model: BaseModel) -> RunForecaster:
        """Return the same for another base model, before its dataset is chosen."""
        return dataclasses.replace(self, base_model=base_model, version=None, validation_version=None)

    def forecast(
        self, resolution: Resolution, hyperparameters: Hyperparameters, starts_at: datetime | None = None
    ) -> Forecast:
        """Return the whole forecast of one run. The resolution must not be a refusal."""
        devices = self.forecast_devices(resolution, hyperparameters)
        matched = resolution.with_dora(hyperparameters).matched
        trainable = adapter_params(matched, hyperparameters.r)
        dtype_bytes = adapter_dtype_bytes(self.dtype_on(best_device(devices).device), hyperparameters)
        weights = adapter_bytes(matched, hyperparameters.r, dtype_bytes=dtype_bytes)
        rows, truncated = self.row_lengths(hyperparameters), self.truncated_rows(hyperparameters)
        cut = self.count_cut_rows(hyperparameters.max_length)
        return Forecast(
            trainable_parameters=trainable,
            adapter_bytes=weights,
            bf16_adapter_bytes=adapter_bytes(matched, hyperparameters.r, dtype_bytes=2),
            disk_bytes=training_cost.disk_bytes(trainable, weights),
            tokens=round(self.workload(hyperparameters).total_tokens),
            rows_cut=cut,
            rows_lost=None if cut is None else min(cut, rows.rows - truncated.rows),
            train_rows=rows.rows if self.version else 0,
            devices=devices,
            starts_at=starts_at,
        )

    def forecast_best_device(
        self, resolution: Resolution, hyperparameters: Hyperparameters
    ) -> DeviceForecast:
        """Return memory and time on the device that suits the run."""
        return best_device(self.forecast_devices(resolution, hyperparameters))

    def forecast_devices(
        self, resolution: Resolution, hyperparameters: Hyperparameters
    ) -> tuple[DeviceForecast, ...]:
        """Return memory and time on every device that can run it, or on all if none can."""
        shape, workload = self.shape(resolution, hyperparameters), self.workload(hyperparameters)
        suitable = [
            device
            for device in self.devices
            if not hyperparameters.load_in_4bit or device[0] in self.quantizing_devices
        ]
        return tuple(
            self._forecast_device(name, memory, shape, workload, hyperparameters)
            for name, memory in suitable or self.devices
        )

    def _forecast_device(
        self,
        device: str,
        memory_bytes: int,
        shape: ModelShape,
        workload: Workload,
        hyperparameters: Hyperparameters,
    ) -> DeviceForecast:
        dtype = self.dtype_on(device)
        estimate = estimate_run(shape, workload, hyperparameters, device, dtype)
        correction = corrections(self.calibrations, device, dtype, self.base_model.pk)
        return DeviceForecast(
            device=device,
            memory_bytes=memory_bytes,
            usable_bytes=max(0, memory_bytes - RESERVED_BYTES[device_kind(device)]),
            peak_memory_bytes=correction.memory.interval(estimate.memory_bytes, MEMORY),
            seconds=correction.time.interval(
                estimate.seconds.computing, TIME, fixed=estimate.seconds.loading_and_saving
            ),
            is_rough=correction.time.is_rough,
        )

    def count_cut_rows(self, max_length: int) -> int | None:
        """Return how many training rows lose part of their answer at that length; None if unknown."""
        rows = self._measured_lengths()
        return round(rows.rows * rows.cut_share(max_length)) if rows else None

    def shape(self, resolution: Resolution, hyperparameters: Hyperparameters) -> ModelShape:
        """Return the base model's sizes with this adapter on it."""
        trainable = adapter_params(resolution.with_dora(hyperparameters).matched, hyperparameters.r)
        return training_cost.model_shape(self.census, resolution.matched, hyperparameters.r, trainable)

    @functools.cached_property
    def census(self) -> Census:
        """Return the base model's census, read once."""
        return self.base_model.load_census()

    def row_lengths(self, hyperparameters: Hyperparameters) -> RowLengths:
        """Return the measured lengths of the training rows, else rows that all fill the maximum length."""
        train_rows = int(self.version.splits.get("train", 0)) if self.version else 0
        return self._measured_lengths() or RowLengths.full(
            max(1, train_rows or hyperparameters.rows_per_step), hyperparameters.max_length
        )

    def truncated_rows(self, hyperparameters: Hyperparameters) -> RowLengths:
        """Return the rows as they are trained on."""
        rows = self.row_lengths(hyperparameters)
        return rows.truncated(hyperparameters.max_length) or RowLengths.full(
            rows.rows, hyperparameters.max_length
        )

    def workload(self, hyperparameters: Hyperparameters) -> Workload:
        """Return the tokens and steps that the run computes."""
        rows, lengths = int(self.version.splits.get("validation", 0)) if self.version else 0, None
        if self.validation_version:
            rows = sum(self.validation_version.splits.values())
            # Measured on its training rows: its splits are drawn at random.
            other = dataclasses.replace(self, version=self.validation_version)
            lengths = other.truncated_rows(hyperparameters)
        return _estimate_workload(
            self.truncated_rows(hyperparameters),
            hyperparameters,
            is_packed=self.census.model_type in PREFIX_TYPES,
            validation_rows=rows,
            validation_lengths=lengths,
        )

    def dtype_on(self, device: str) -> str:
        """Return the number format of the device's last run; before the first, the usual one."""
        measured = (row.dtype for row in self.calibrations if row.device == device)
        return next(measured, training_cost.usual_dtype(device))

    def _measured_lengths(self) -> RowLengths | None:
        if self.version is None:
            return None
        report = dict(self.version.report.get("token_lengths") or {})
        return RowLengths.from_report(report, int(self.version.splits.get("train", 0)))


_estimate_workload = functools.lru_cache(maxsize=512)(estimate_workload)


def estimate_run(
    shape: ModelShape,
    workload: Workload,
    hyperparameters: Hyperparameters,
    device: str,
    dtype: str,
    threads: int | None = None,
) -> RawEstimate:
    """Return memory and time by formula alone. `threads`: of a CPU; by default those in the device's name."""
    return _estimate_run(shape, workload, hyperparameters, device, dtype, threads or device_threads(device))


# A form asks for the same cards and arms at every change.
@functools.lru_cache(maxsize=512)
def _estimate_run(
    shape: ModelShape,
    workload: Workload,
    hyperparameters: Hyperparameters,
    device: str,
    dtype: str,
    threads: int,
) -> RawEstimate:
    options = ComputeOptions(
        dtype_bytes=DTYPE_BYTES.get(dtype, 4),
        on_cuda=device_kind(device) == "cuda",
        has_dropout=hyperparameters.lora_dropout > 0,
        gradient_checkpointing=hyperparameters.gradient_checkpointing,
        adapter_dtype_bytes=adapter_dtype_bytes(dtype, hyperparameters),
        load_in_4bit=hyperparameters.load_in_4bit,
    )
    speed = training_cost.typical_operations_per_second(device, threads, options.dtype_bytes)
    return RawEstimate(
        memory_bytes=sum(training_cost.estimate_memory(shape, workload, options).values()),
        seconds=training_cost.estimate_time(shape, workload, speed, options),
    )


def adapter_dtype_bytes(dtype: str, hyperparameters: Hyperparameters) -> int:
    """Return bytes per number of the adapter on a base of that number format."""
    return 4 if hyperparameters.autocast_adapter_dtype else DTYPE_BYTES.get(dtype, 4)


def device_threads(device: str) -> int:
    """Return the threads that the engine takes on a node whose device is "CPU, 8 cores"."""
    cores = re.search(r"(\d+) core", device)
    count = int(cores.group(1)) if cores else 1
    return int(settings.ENGINE_THREADS) or max(1, count // int(settings.CPU_TRAININGS))


def forecast_run(run: TrainingRun) -> dict[str, Any]:
    """Return the forecast that a frozen run stores when it is launched, on the devices that train now."""
    return forecast_runs([run])[0]


def forecast_runs(runs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
    """Return the forecasts of frozen runs of one project, base model and dataset version."""
    if not runs:
        return []
    start = estimate_next_start(Job.Queue.GPU, runs[0].project)
    forecaster = RunForecaster.load(runs[0].base_model, runs[0].dataset_version, runs[0].validation_version)
    return [
        forecaster.forecast(
            run.target_module_config.resolve(run.base_model),
            Hyperparameters(**run.hyperparameters),
            start.at if start else None,
        ).to_dict()
        for run in runs
    ]
