"""What each kind of job leaves behind: engine events become rows and published folders, under the fence.

A folder is published by one rename to a name made from its content; only then comes its row. Knows nothing
of processes and nothing of tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
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
    Job,
    MetricSeries,
    Publication,
    TrainingRun,
)
from dashboard.models.adapter import WEIGHTS
from workers.errors import ModelError, RunError
from workers.events import ArmEnd, Artifact, Checkpoint, Event, Metrics, Result, storable

SAFETENSORS_HEADER_LIMIT = 100 * 1024**2


class Recorder(Protocol):
    """Turns what the engine reports into rows; one for each kind of job."""

    def record(self, event: Event) -> None:
        """Note an event; may batch."""

    def flush(self) -> None:
        """Write what was batched."""

    def finish(self) -> None:
        """The child has said a clean good-bye: commit the result and end the job."""

    def fail(self, code: str) -> None:
        """The job is about to fail: keep what its page needs."""


class PublishError(RunError):
    """What the engine wrote is not what it reported."""

    code = "publish_failed"


def finish_job(job: Job) -> None:
    """The last two moves of a job whose work is done; call inside the transaction that commits its result."""
    job.move("work_done", actor=job.worker, fenced=True)
    job.move("succeed", actor=job.worker, fenced=True)


class ImportRecorder:
    """An imported dataset version, or the report of why it could not be imported."""

    def __init__(self, job: Job, out_dir: Path) -> None:
        self.job, self.out_dir = job, out_dir
        self.report: dict[str, Any] = {}

    def record(self, event: Event) -> None:
        """Keep the report."""
        if isinstance(event, Result):
            self.report = event.values

    def flush(self) -> None:
        """Nothing is batched."""

    def finish(self) -> None:
        """Publish the splits under their content hash, then commit the version."""
        version = self._version()
        Publication.objects.begin(Publication.Kind.DATASET, self.report["sha256"])
        publish_folder(self.out_dir, Path(settings.DATA_DIR) / "datasets" / self.report["sha256"])
        with transaction.atomic():
            finish_job(self.job)
            version.record_import({key: value for key, value in self.report.items() if key != "path"})
        version.forget_upload()

    def fail(self, code: str) -> None:
        """The page shows which rows were bad, or which columns there are to choose from."""
        path = self.out_dir / "report.json"
        # On a full disk there may be no report, or half of one.
        with contextlib.suppress(FileNotFoundError, ValueError):
            report = storable(json.loads(path.read_text(encoding="utf-8")))
            self._version().record_problems(report)

    def _version(self) -> DatasetVersion:
        return DatasetVersion.objects.get(job=self.job)


class InspectRecorder:
    """A base model's census."""

    def __init__(self, job: Job, out_dir: Path) -> None:
        self.job = job
        self.found: dict[str, Any] = {}

    def record(self, event: Event) -> None:
        """Keep the census."""
        if isinstance(event, Result):
            self.found = event.values

    def flush(self) -> None:
        """Nothing is batched."""

    def finish(self) -> None:
        """Commit the census."""
        base_model = BaseModel.objects.get(job=self.job)
        try:
            with transaction.atomic():
                finish_job(self.job)
                base_model.record_inspection(self.found)
        except IntegrityError as error:
            # Only now is it known which commit a branch or "newest" stands for.
            raise ModelError(
                f"This project has {base_model.hub_id} at this revision already. Use that base model."
            ) from error

    def fail(self, code: str) -> None:
        """Nothing to keep."""


class TrainRecorder:
    """Metrics, adapters and outcomes of the arms of a training job."""

    def __init__(self, job: Job, out_dir: Path) -> None:
        self.job, self.out_dir = job, out_dir
        self.arms = list(TrainingRun.objects.filter(job=job).order_by("pk"))
        self.points: dict[tuple[int, str], list[tuple[int, float]]] = {}
        self.artifacts: dict[int, Artifact] = {}

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
            if not self.job.renew():
                return
            for (arm, name), values in self.points.items():
                MetricSeries.objects.append(self.arms[arm], name, values)
        # Only now: while the database is away, they wait for the next flush.
        self.points = {}

    def _end_arm(self, end: ArmEnd) -> None:
        run = self.arms[end.arm]
        if end.outcome == TrainingRun.Outcome.SUCCEEDED:
            self._publish(run, self.artifacts[end.arm], end)
        elif end.outcome == TrainingRun.Outcome.FAILED:
            with transaction.atomic():
                if self.job.may_commit():
                    run.end(
                        end.outcome, step=end.step, code=end.code, message=end.message, measured=end.summary
                    )

    def _publish(self, run: TrainingRun, artifact: Artifact, end: ArmEnd) -> None:
        """Check, rename, commit: Adapter, outcome and the evaluate job in one transaction."""
        if not self.job.may_commit():
            return
        folder = self.out_dir / artifact.path
        content = hashlib.sha256(json.dumps(artifact.files, sort_keys=True).encode()).hexdigest()
        published = Path(settings.DATA_DIR) / "adapters" / content
        Publication.objects.begin(Publication.Kind.ADAPTER, content)
        check_adapter(folder if folder.exists() else published, artifact.files)
        publish_folder(folder, published)
        size = (published / WEIGHTS).stat().st_size
        with transaction.atomic():
            if not self.job.may_commit():
                return
            adapter = Adapter.objects.publish(run, content, artifact.files, size)
            run.end(end.outcome, step=end.step, measured=end.summary)
            if run.study_arm_id is None:  # a study has its adapters scored together
                Evaluation.objects.submit(adapter, self.job.created_by)

    def finish(self) -> None:
        """The job succeeded if any arm did; otherwise it shares the first arm's failure."""
        for run in self.arms:
            run.refresh_from_db()
        if any(run.outcome == TrainingRun.Outcome.SUCCEEDED for run in self.arms):
            with transaction.atomic():
                finish_job(self.job)
            return
        failed = next((run for run in self.arms if run.error_code), None)
        code = failed.error_code if failed else "internal_error"
        message = failed.error_message if failed else "The engine ended without an adapter."
        self.job.move(
            "fail", actor=self.job.worker, reason=message, fenced=True, error_code=code, error_message=message
        )

    def fail(self, code: str) -> None:
        """Curves up to the failure stay."""
        self.flush()


class EvaluateRecorder:
    """Metrics and items of base and adapter on the same rows."""

    def __init__(self, job: Job, out_dir: Path) -> None:
        self.job, self.out_dir = job, out_dir
        self.found: dict[str, Any] = {}

    def record(self, event: Event) -> None:
        """Keep the metrics."""
        if isinstance(event, Result):
            self.found = event.values

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
        with transaction.atomic():
            finish_job(self.job)
            for evaluation in self.job.evaluations.select_related("run"):
                metrics = self.found[evaluation.key]
                evaluation.record_result(self.found["rows"], metrics, items.get(evaluation.key, []))

    def fail(self, code: str) -> None:
        """Nothing to keep."""


RECORDERS: dict[Job.Kind, Callable[[Job, Path], Recorder]] = {
    Job.Kind.IMPORT: ImportRecorder,
    Job.Kind.INSPECT: InspectRecorder,
    Job.Kind.TRAIN: TrainRecorder,
    Job.Kind.EVALUATE: EvaluateRecorder,
}


def _no_number(_name: str) -> None:
    """Databases refuse NaN and Infinity in JSON."""


def publish_folder(source: Path, target: Path) -> None:
    """Make `source` durable, then give it its content's name by one rename. Equal content is kept once.

    Repeated after a commit that failed, it finds the folder in its place and changes nothing.
    """
    if not source.exists() and target.is_dir():
        return
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    for path in [*source.rglob("*"), source]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(source)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_adapter(folder: Path, files: dict[str, str]) -> None:
    """What lies in the folder must be exactly what was reported, and the weights a plain safetensors file."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if present != set(files) or WEIGHTS not in files:
        raise PublishError(
            f"The adapter folder holds other files than reported: {sorted(present ^ set(files))}."
        )
    for name, digest in files.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise PublishError(f"The file {name} changed between writing and publishing.")
    check_safetensors(folder / WEIGHTS)


def check_safetensors(path: Path) -> None:
    """The header is JSON whose tensors fill the file without a gap: 8 bytes of length, header, data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, SAFETENSORS_HEADER_LIMIT):
            raise PublishError("The adapter's weights have a broken header.")
        header = json.loads(file.read(length))
    spans = sorted(tuple(item["data_offsets"]) for name, item in header.items() if name != "__metadata__")
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            raise PublishError("The adapter's weights have a broken header.")
        end = stop
    if not spans or 8 + length + end != size:
        raise PublishError("The adapter's weights are incomplete.")
