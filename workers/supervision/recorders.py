"""Recorders turn the engine's events into rows and published folders, under the fence; one per kind of job.

A folder is published first, and only then comes its row. Knows nothing of processes and nothing of tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from django.conf import settings
from django.db import IntegrityError, transaction

from dashboard.models import (
    Adapter,
    BaseModel,
    DatasetVersion,
    Evaluation,
    IllegalMove,
    Job,
    MetricSeries,
    Publication,
    State,
    TrainingRun,
)
from dashboard.models.adapters.adapter import WEIGHTS
from dashboard.models.training.evaluation_cost import record_scoring_time
from workers.contract.errors import ModelError
from workers.contract.events import ArmEnd, Artifact, Checkpoint, Event, Metrics, Result, storable
from workers.supervision.publish import (
    KeepLease,
    PublishError,
    keep_no_lease,
    publish_adapter,
    publish_folder,
)

HAS_ADAPTER = (TrainingRun.Outcome.SUCCEEDED, TrainingRun.Outcome.STOPPED_EARLY)


class Recorder(Protocol):
    """Turns the engine's events into rows."""

    keep_lease: KeepLease  # called between two pieces of a long write

    def record(self, event: Event) -> None:
        """Handle an event; may batch."""

    def flush(self) -> None:
        """Write the batch."""

    def finish(self) -> None:
        """Commit the result and end the job: the engine has finished its work."""

    def fail(self, code: str) -> None:
        """Keep what the page of a failed job needs."""


def start_finalizing(job: Job) -> None:
    """Show that the result is being saved, which takes a while for a large one."""
    # A stop that came first wins; it is seen before anything is committed.
    with contextlib.suppress(IllegalMove):
        job.move("work_done", actor=job.worker, fenced=True)


def finish_job(job: Job) -> None:
    """Mark the job succeeded; call inside the transaction that commits its result."""
    job.refresh_from_db(fields=["state"])
    if job.state == State.RUNNING:
        job.move("work_done", actor=job.worker, fenced=True)
    job.move("succeed", actor=job.worker, fenced=True)


def cancel_without_result(job: Job) -> None:
    """Cancel a training that was stopped to keep its best before there was any."""
    with transaction.atomic():
        reason = "Nothing had been learned yet, so there is nothing to keep."
        job.move("cancel", reason=reason, fenced=True, keep=Job.Keep.NOTHING)
        job.complete_stop(actor=job.worker)


class ImportRecorder:
    """Records an imported dataset version, or the report of why it could not be imported."""

    def __init__(self, job: Job, out_dir: Path) -> None:
        self.job, self.out_dir = job, out_dir
        self.report: dict[str, Any] = {}
        self.keep_lease: KeepLease = keep_no_lease

    def record(self, event: Event) -> None:
        """Keep the report."""
        if isinstance(event, Result):
            self.report = event.values

    def flush(self) -> None:
        """Nothing is batched."""

    def finish(self) -> None:
        """Publish the splits under their content hash, then commit the version."""
        version = self._version()
        start_finalizing(self.job)
        Publication.objects.begin(Publication.Kind.DATASET, self.report["sha256"])
        folder = Path(settings.DATA_DIR) / "datasets" / self.report["sha256"]
        publish_folder(self.out_dir, folder, self.keep_lease)
        with transaction.atomic():
            finish_job(self.job)
            version.record_import({key: value for key, value in self.report.items() if key != "path"})
        version.delete_upload()

    def fail(self, code: str) -> None:
        """Keep the report: the page shows the bad rows, or the columns to choose from."""
        path = self.out_dir / "report.json"
        # On a full disk there may be no report, or half of one.
        with contextlib.suppress(FileNotFoundError, ValueError):
            report = storable(json.loads(path.read_text(encoding="utf-8")))
            self._version().record_problems(report)

    def _version(self) -> DatasetVersion:
        return DatasetVersion.objects.get(job=self.job)


class InspectRecorder:
    """Records a base model's census."""

    def __init__(self, job: Job, out_dir: Path) -> None:
        self.job = job
        self.result: dict[str, Any] = {}
        self.keep_lease: KeepLease = keep_no_lease

    def record(self, event: Event) -> None:
        """Keep the census."""
        if isinstance(event, Result):
            self.result = event.values

    def flush(self) -> None:
        """Nothing is batched."""

    def finish(self) -> None:
        """Commit the census."""
        base_model = BaseModel.objects.get(job=self.job)
        try:
            with transaction.atomic():
                finish_job(self.job)
                base_model.record_inspection(self.result)
        except IntegrityError as error:
            # Only now is it known which commit a branch or "newest" stands for.
            raise ModelError(
                f"This project has {base_model.hub_id} at this revision already. Use that base model."
            ) from error

    def fail(self, code: str) -> None:
        """Nothing to keep."""


class TrainRecorder:
    """Records metrics, adapters and outcomes of the arms of a training job."""

    def __init__(self, job: Job, out_dir: Path) -> None:
        self.job, self.out_dir = job, out_dir
        self.arms = list(TrainingRun.objects.filter(job=job).order_by("pk"))
        self.points: dict[tuple[int, str], list[tuple[int, float]]] = {}
        self.artifacts: dict[int, Artifact] = {}
        self.keep_lease: KeepLease = keep_no_lease

    def record(self, event: Event) -> None:
        """Batch metrics; publish an arm's adapter as soon as the arm ends."""
        if isinstance(event, Metrics):
            for name, value in event.values.items():
                if value is not None:
                    self.points.setdefault((event.arm, name), []).append((event.step, value))
        elif isinstance(event, Artifact):
            self.artifacts[event.arm] = event
        elif isinstance(event, Checkpoint):
            self.flush()
        elif isinstance(event, ArmEnd):
            self.flush()
            self._end_arm(event)

    def flush(self) -> None:
        """Write the batched points, one transaction for all curves."""
        if not self.points:
            return
        with transaction.atomic():
            if not self.job.renew_lease():
                return
            for (arm, name), values in self.points.items():
                MetricSeries.objects.append(self.arms[arm], name, values)
        # Cleared after the commit: while the database is away, they wait for the next flush.
        self.points = {}

    def _end_arm(self, end: ArmEnd) -> None:
        """Write an arm's outcome, once: after an outage the same line may come again."""
        run = self.arms[end.arm]
        run.refresh_from_db(fields=["outcome"])
        if run.outcome:
            return
        # Search runs publish no adapter.
        if end.outcome in HAS_ADAPTER and run.rung is None:
            if not TrainingRun.objects.filter(job=self.job, outcome="").exclude(pk=run.pk).exists():
                start_finalizing(self.job)
            try:
                self._publish(run, self.artifacts[end.arm], end)
            except PublishError as error:
                # The others train on; the checkpoint stays, so that this arm can be resumed.
                self._write_end(run, ArmEnd(end.arm, "failed", end.step, error.code, error.message))
        else:
            self._write_end(run, end)

    def _write_end(self, run: TrainingRun, end: ArmEnd) -> None:
        with transaction.atomic():
            if self.job.may_commit():
                run.end(
                    end.outcome,
                    step=end.step,
                    code=end.code,
                    message=end.message,
                    measured=self._measured(end),
                )

    def _publish(self, run: TrainingRun, artifact: Artifact, end: ArmEnd) -> None:
        """Check, rename, commit: Adapter, outcome and the evaluate job in one transaction."""
        if not self.job.may_commit():
            return
        content = hashlib.sha256(json.dumps(artifact.files, sort_keys=True).encode()).hexdigest()
        Publication.objects.begin(Publication.Kind.ADAPTER, content)
        published = Path(settings.DATA_DIR) / "adapters" / content
        publish_adapter(self.out_dir / artifact.path, published, artifact.files, self.keep_lease)
        size = (published / WEIGHTS).stat().st_size
        with transaction.atomic():
            # Locked before the job, in the order of a stop of the whole study: no deadlock.
            run.project.hold()
            if not self.job.may_commit():
                return
            adapter = Adapter.objects.publish(run, content, artifact.files, size)
            run.end(end.outcome, step=end.step, measured=self._measured(end))
            # A study has the adapters of all its arms scored together.
            if run.study_arm_id is None:
                Evaluation.objects.submit(adapter, self.job.created_by)

    def _measured(self, end: ArmEnd) -> dict[str, Any]:
        """Return the engine's summary of an arm with the attempt in which it ended."""
        return {**end.summary, "attempt": self.job.attempt}

    def finish(self) -> None:
        """End the job: succeeded if any arm is, cancelled if all are, else failed with the first error."""
        for run in self.arms:
            run.refresh_from_db()
        if any(run.outcome in HAS_ADAPTER for run in self.arms):
            with transaction.atomic():
                finish_job(self.job)
            return
        if all(run.outcome == State.CANCELLED for run in self.arms):
            cancel_without_result(self.job)
            return
        failed = next((run for run in self.arms if run.error_code), None)
        code = failed.error_code if failed else "internal_error"
        message = failed.error_message if failed else "The engine ended without an adapter."
        self.job.move(
            "fail", actor=self.job.worker, reason=message, fenced=True, error_code=code, error_message=message
        )

    def fail(self, code: str) -> None:
        """Keep the curves up to the failure."""
        self.flush()


class EvaluateRecorder:
    """Records metrics and items of base and adapter on the same rows."""

    def __init__(self, job: Job, out_dir: Path) -> None:
        self.job, self.out_dir = job, out_dir
        self.result: dict[str, Any] = {}
        self.keep_lease: KeepLease = keep_no_lease

    def record(self, event: Event) -> None:
        """Keep the metrics."""
        if isinstance(event, Result):
            self.result = event.values

    def flush(self) -> None:
        """Nothing is batched."""

    def finish(self) -> None:
        """Commit both evaluations together, so that no page compares half a pair."""
        items: dict[str, list[dict[str, Any]]] = {}
        path = self.out_dir / "items.jsonl"
        if path.exists():
            # Line by line from the file: str.splitlines also cuts at separators inside of a text.
            with path.open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    item = storable(json.loads(line, parse_constant=_no_number))
                    items.setdefault(item["subject"], []).append(item)
        speeds, questions = self.result["ms_per_token"], self.result["general_questions"]
        with transaction.atomic():
            finish_job(self.job)
            for evaluation in self.job.evaluations.select_related("run", "dataset_version"):
                # Beside the base's at the same time: two moments of a busy machine are hard to compare.
                metrics = self.result[evaluation.key] | {
                    "ms_per_token": speeds[evaluation.key],
                    "base_ms_per_token": speeds["base"],
                }
                asked = {**questions, "marks": questions["marks"][evaluation.key]}
                found = items.get(evaluation.key, [])
                evaluation.record_result(self.result["rows"], metrics, found, asked)
                if evaluation.split == "test":
                    evaluation.dataset_version.freeze_test_rows(self.result["split_sha256"])
            record_scoring_time(self.job, self.result)

    def fail(self, code: str) -> None:
        """Nothing to keep."""


RECORDERS: dict[Job.Kind, Callable[[Job, Path], Recorder]] = {
    Job.Kind.IMPORT: ImportRecorder,
    Job.Kind.INSPECT: InspectRecorder,
    Job.Kind.TRAIN: TrainRecorder,
    Job.Kind.EVALUATE: EvaluateRecorder,
}


def _no_number(_name: str) -> None:
    """Replace NaN and Infinity, which databases refuse in JSON."""
