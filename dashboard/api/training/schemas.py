"""JSON objects of training runs in the API."""

from __future__ import annotations

from typing import Any, Literal

from ninja import Schema
from pydantic import ConfigDict, StrictBool, StrictInt

from dashboard.api.answer import Answer, Time
from dashboard.api.choices import HyperparametersIn, IdOrSlug
from dashboard.api.evaluations.forgetting import ForgettingOut
from dashboard.api.failures import Failure
from dashboard.api.texts import Name, Note


class RunIn(Schema):
    """A run to launch, on the newest imported version of the dataset.

    `validation_dataset`: all rows of its newest imported version are the validation rows, in place of those
    of `dataset`, which are then not used. Test rows are those of `dataset`.
    `confirmed` accepts the warnings of the target modules. The refusal states them, and the list of
    target-module configs returns them as `confirm`. `reuse`: return a finished run with equal settings, data,
    base model, seed and engine version, if there is one, in place of training it again.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name = ""
    dataset: StrictInt
    validation_dataset: StrictInt | None = None
    base_model: StrictInt | None = None
    target_module_config: IdOrSlug
    hyperparameters: HyperparametersIn | None = None
    confirmed: StrictBool = False
    reuse: StrictBool = False


class RunNotesIn(Schema):
    """Tags and note of a run."""

    model_config = ConfigDict(extra="forbid")

    tags: list[Name] | None = None
    note: Note | None = None


class Score(Answer):
    """A metric of the base model and of the adapter on the same test rows."""

    base: float | None
    adapter: float


class CancelIn(Schema):
    """`keep`: the best checkpoint as an `adapter`, the last `checkpoint` for resuming, or nothing (null)."""

    model_config = ConfigDict(extra="forbid")

    keep: Literal["adapter", "checkpoint"] | None = None


class Range(Answer):
    """A 90 % prediction interval."""

    expected: float
    low: float
    high: float


class BytesRange(Answer):
    """A 90 % prediction interval in bytes."""

    expected: int
    low: int
    high: int


class Forecast(Answer):
    """Forecast before the start, for the fastest device on which the run fits.

    `rows_cut`: estimated number of training rows whose answer is truncated to `max_length`; null if unknown.
    `starts_at`: expected start; null if there is no forecast.
    """

    trainable_parameters: int
    adapter_bytes: int
    peak_memory_bytes: BytesRange | None = None
    seconds: Range | None = None
    rows_cut: int | None = None
    starts_at: Time | None = None


class AdapterRef(Answer):
    """Reference to the adapter of a run."""

    id: int
    name: str
    version: int


class RunOut(Answer):
    """A run.

    `hyperparameters` include the defaults. `forecast` is null for a run that was stored without one.
    `resumable_from`: the step to resume from, or null. `adjustments`: changes of the batch after the device
    ran out of memory. `starts_at`: expected start of a waiting run, or null. `origin`: hashes, versions and
    device; null for values that are not known yet. `reused_from`: the finished run that stands in for this
    one in a study, or null. `validation_dataset`: null for the validation rows of `dataset`. `scores`: by
    metric; empty until the run's evaluation, or its study, has ended.
    """

    id: int
    name: str
    reused_from: int | None
    state: str
    dataset: int
    validation_dataset: int | None
    base_model: int
    target_module_config: int
    hyperparameters: dict[str, Any]
    starts_at: Time | None
    step: int
    total_steps: int
    forecast: Forecast | None
    adapter: AdapterRef | None
    error: Failure | None
    resumable_from: int | None
    adjustments: list[dict[str, Any]]
    origin: dict[str, Any]
    tags: list[str]
    note: str
    scores: dict[str, Score]


class MetricsOut(Answer):
    """A metric's points [step, value], by step."""

    name: str
    points: list[tuple[int, float | None]]


class CurveOut(Answer):
    """A run's points [step, value] of one metric, by step."""

    run: int
    points: list[tuple[int, float | None]]


class CurvesOut(Answer):
    """One metric of several runs."""

    name: str
    data: list[CurveOut]


class MetricSeriesOut(Answer):
    """A metric without its points."""

    name: str
    count: int
    last_step: int
    last: float | None
    low: float | None
    high: float | None


class EvaluationOut(Answer):
    """Scores of the base model or the adapter on a split.

    `general_questions`: version and SHA-256 of the general questions, the number of choices, and a mark of
    0 or 1 for each question; null if they were not part of the evaluation. The metric `general_accuracy` is
    their mean. `forgetting`: the adapter's change against the base model on them.
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


class SampleOut(Answer):
    """A test row: system message, prompt, expected answer, and the answers of base model and adapter."""

    row: int
    system: str
    prompt: str
    expected: str
    base: str
    adapter: str
    base_scores: dict[str, Any]
    adapter_scores: dict[str, Any]


class LogOut(Answer):
    """Last lines of the log of the run's job."""

    text: str
