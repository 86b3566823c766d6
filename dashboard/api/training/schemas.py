"""JSON objects of training runs in the API."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from ninja import Schema
from pydantic import ConfigDict, StrictBool, StrictInt

from dashboard.api.choices import HyperparametersIn, IdOrSlug
from dashboard.api.evaluations.forgetting import ForgettingOut
from dashboard.api.failures import Failure
from dashboard.api.texts import Name


class RunIn(Schema):
    """A run to launch, on the newest imported version of the dataset.

    `confirmed` accepts the warnings of the target modules, if there are any: the refusal states them, and the
    list of target-module configs has them as `confirm`.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name = ""
    dataset: StrictInt
    base_model: StrictInt | None = None
    target_module_config: IdOrSlug
    hyperparameters: HyperparametersIn | None = None
    confirmed: StrictBool = False


class CancelIn(Schema):
    """What to keep: the best checkpoint as an `adapter`, the last `checkpoint` for resuming, or nothing."""

    model_config = ConfigDict(extra="forbid")

    keep: Literal["adapter", "checkpoint"] | None = None


class Range(Schema):
    """A 90 % interval: nine of ten runs should lie between `low` and `high`."""

    expected: float
    low: float
    high: float


class BytesRange(Schema):
    """A 90 % interval in bytes."""

    expected: int
    low: int
    high: int


class Forecast(Schema):
    """Estimated before the start, for the quickest device on which the run fits.

    `rows_cut`: about how many training rows have an answer that `max_length` cuts; null where that is not
    known. `starts_at`: when it would probably begin; null where there is nothing to go by.
    """

    trainable_parameters: int
    adapter_bytes: int
    peak_memory_bytes: BytesRange | None = None
    seconds: Range | None = None
    rows_cut: int | None = None
    starts_at: datetime | None = None


class AdapterRef(Schema):
    """Reference to the adapter of a run."""

    id: int
    name: str
    version: int


class RunOut(Schema):
    """A run. `hyperparameters` are resolved: nothing in them is left open. `resumable_from`: the step from
    which it could be resumed, or null. `adjustments`: what was changed after memory ran out. `starts_at`:
    when a waiting run probably starts; null when it does not wait or there is nothing to go by. `origin`: all
    that made it what it is, from hashes and versions to the device; null for what is not known yet."""

    id: int
    name: str
    state: str
    dataset: int
    base_model: int
    target_module_config: int
    hyperparameters: dict[str, Any]
    starts_at: datetime | None
    step: int
    total_steps: int
    forecast: Forecast
    adapter: AdapterRef | None
    error: Failure | None
    resumable_from: int | None
    adjustments: list[dict[str, Any]]
    origin: dict[str, Any]


class MetricsOut(Schema):
    """One curve: [step, value] in rising order."""

    name: str
    points: list[tuple[int, float | None]]


class MetricSeriesOut(Schema):
    """A curve without its points."""

    name: str
    count: int
    last_step: int
    last: float | None
    low: float | None
    high: float | None


class EvaluationOut(Schema):
    """Scores of base model or adapter on a split.

    `general_questions`: version and SHA-256 of the questions that were asked besides, how many answers each
    has, and a mark of 0 or 1 for each; null where they were not asked. Their mean is `general_accuracy` among
    the metrics. `forgetting` is what an adapter changed against the base model outside of the data.
    """

    id: int
    subject: str
    split: str
    rows: int | None
    state: str
    metrics: dict[str, Any]
    general_questions: dict[str, Any] | None
    forgetting: ForgettingOut | None
    error: Failure | None


class SampleOut(Schema):
    """A test row: prompt, expected answer, and the answers of base model and adapter."""

    row: int
    prompt: str
    expected: str
    base: str
    adapter: str
    base_scores: dict[str, Any]
    adapter_scores: dict[str, Any]


class LogOut(Schema):
    """Last lines of the log of the run's job."""

    text: str
