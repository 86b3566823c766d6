"""Recorders turn the engine's events into rows and published folders, under the fence.

A folder is published first, and only then comes its row. Knows nothing of processes and nothing of tensors.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction

from dashboard.models import (
    Adapter,
    BaseModel,
    DatasetVersion,
    Evaluation,
    Export,
    HubPush,
    IllegalMove,
    Job,
    MetricSeries,
    Publication,
    State,
    TrainingRun,
)
from dashboard.models.adapters.adapter import WEIGHTS
from dashboard.models.training.evaluation_cost import record_scoring_time
from workers.contract.base_scores import number_format
from workers.contract.errors import ModelError
from workers.contract.events import ArmEnd, Artifact, Checkpoint, Event, Metrics, Result, storable
from workers.contract.specs import EvalSpec, from_dict
from workers.supervision.publish import (
    KeepLease,
    PublishError,
    check_files,
    keep_no_lease,
    publish_adapter,
    publish_folder,
)

HAS_ADAPTER = (TrainingRun.Outcome.SUCCEEDED, TrainingRun.Outcome.STOPPED_EARLY)


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


def fail_job(job: Job, code: str, message: str) -> None:
    """Mark the job failed with an error for the user."""
    job.move("fail", actor=job.worker, reason=message, fenced=True, error_code=code, error_message=message)


def cancel_without_result(job: Job) -> None:
    """Cancel a training that was stopped before its first checkpoint."""
    with transaction.atomic():
        reason = "Nothing had been learned yet, so there is nothing to keep."
        job.move("cancel", reason=reason, fenced=True, keep=Job.Keep.NOTHING)
        job.complete_stop(actor=job.worker)


class ResultRecorder:
    """Records a job that reports one result at its end, with the `commit` function of its kind."""

    def __init__(self, job: Job, out_dir: Path, commit: Callable[[ResultRecorder], None]) -> None:
        self.job, self.out_dir, self.commit = job, out_dir, commit
        self.result: dict[str, Any] = {}
        self.keep_lease: KeepLease = keep_no_lease  # called between two pieces of a long write

    def record(self, event: Event) -> None:
        """Keep the result."""
        if isinstance(event, Result):
            self.result = event.values

    def flush(self) -> None:
        """Do nothing: there is no batch."""

    def finish(self) -> None:
        """Commit the result."""
        if self.result:
            self.commit(self)
        else:
            fail_job(self.job, "internal_error", "The engine ended without a result.")

    def record_failure(self) -> None:
        """Keep an import's report: the page shows the bad rows, or the columns to choose from."""
        if self.job.kind != Job.Kind.IMPORT:
            return
        path = self.out_dir / "report.json"
        # On a full disk there may be no report, or half of one.
        with contextlib.suppress(FileNotFoundError, ValueError):
            report = storable(json.loads(path.read_text(encoding="utf-8")))
            DatasetVersion.objects.get(job=self.job).record_problems(report)


def commit_import(recorder: ResultRecorder) -> None:
    """Publish the splits under their content hash, then commit the dataset version."""
    job, report = recorder.job, recorder.result
    version = DatasetVersion.objects.get(job=job)
    start_finalizing(job)
    Publication.objects.begin(Publication.Kind.DATASET, report["sha256"])
    folder = Path(settings.DATA_DIR) / "datasets" / report["sha256"]
    publish_folder(recorder.out_dir, folder, recorder.keep_lease)
    with transaction.atomic():
        finish_job(job)
        version.record_import({key: value for key, value in report.items() if key != "path"})
    version.delete_upload()


def commit_export(recorder: ResultRecorder) -> None:
    """Check and publish the file, then commit its row."""
    job, files = recorder.job, recorder.result["files"]
    export = Export.objects.select_related("job").get(job=job)
    start_finalizing(job)
    source, name = recorder.out_dir / "export", export.folder_of(files)
    if source.exists():
        digests = {name: facts["sha256"] for name, facts in files.items()}
        check_files(source, digests, recorder.keep_lease)
    Publication.objects.begin(Publication.Kind.EXPORT, name)
    publish_folder(source, Path(settings.DATA_DIR) / "exports" / name, recorder.keep_lease)
    with transaction.atomic():
        finish_job(job)
        export.record(files)


def commit_push(recorder: ResultRecorder) -> None:
    """Commit where the files are on the hub."""
    with transaction.atomic():
        finish_job(recorder.job)
        HubPush.objects.get(job=recorder.job).record(**recorder.result)


def commit_serving(recorder: ResultRecorder) -> None:
    """End an inference job; it leaves nothing behind."""
    with transaction.atomic():
        finish_job(recorder.job)


def commit_inspection(recorder: ResultRecorder) -> None:
    """Commit a base model's census."""
    base_model = BaseModel.objects.get(job=recorder.job)
    try:
        with transaction.atomic():
            finish_job(recorder.job)
            base_model.record_inspection(recorder.result)
    except IntegrityError as error:
        # The commit behind a branch is known only now.
        raise ModelError(
            f"This project has {base_model.hub_id} at this revision already. Use that base model."
        ) from error


def commit_evaluation(recorder: ResultRecorder) -> None:
    """Commit the evaluations of base and adapter together, so that no page compares half a pair.

    Of the base model's scores the first ones are kept, and later jobs are paired with them.
    """
    job, result = recorder.job, recorder.result
    spec = from_dict(EvalSpec, job.spec)
    items = _read_items(recorder.out_dir / "items.jsonl")
    speeds, questions = result["ms_per_token"], result["general_questions"]
    with transaction.atomic():
        # Two jobs that score the same base model end one after the other.
        if job.project:
            job.project.hold()
        finish_job(job)
        Evaluation.objects.keep_base(job, spec, number_format(result["dtype"], result["device"]))
        for evaluation in job.evaluations.select_related("run", "dataset_version"):
            name = evaluation.subject_name
            # Times of one job are stored side by side: those of two jobs on a busy machine do not compare.
            metrics = result[name] | {"ms_per_token": speeds[name], "base_ms_per_token": speeds["base"]}
            answers = {**questions, "marks": questions["marks"][name]}
            evaluation.record_result(result["rows"], metrics, items.get(name, []), answers)
            if evaluation.split == "test":
                evaluation.dataset_version.freeze_test_rows(result["split_sha256"])
        record_scoring_time(job, result)


def _read_items(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the evaluated rows by subject; NaN and Infinity, which databases refuse, become None."""
    items: dict[str, list[dict[str, Any]]] = {}
    if path.exists():
        # Line by line from the file: str.splitlines also splits at separators inside of a text.
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                item = storable(json.loads(line, parse_constant=lambda _name: None))
                items.setdefault(item["subject"], []).append(item)
    return items


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
        # Cleared after the commit: while the database is away, the points wait for the next flush.
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
                self._publish(run, end)
                return
            except PublishError as error:
                # The other arms train on; the checkpoint stays, so that this arm can be resumed.
                end = ArmEnd(end.arm, "failed", end.step, error.code, error.message)
        with transaction.atomic():
            if self.job.may_commit():
                self._write_end(run, end)

    def _write_end(self, run: TrainingRun, end: ArmEnd) -> None:
        measured = {**end.summary, "attempt": self.job.attempt}
        run.end(end.outcome, step=end.step, code=end.code, message=end.message, measured=measured)

    def _publish(self, run: TrainingRun, end: ArmEnd) -> None:
        """Check, rename, commit: Adapter, outcome and the evaluate job in one transaction."""
        if not self.job.may_commit():
            return
        artifact = self.artifacts[end.arm]
        content = hashlib.sha256(json.dumps(artifact.files, sort_keys=True).encode()).hexdigest()
        Publication.objects.begin(Publication.Kind.ADAPTER, content)
        published = Path(settings.DATA_DIR) / "adapters" / content
        publish_adapter(self.out_dir / artifact.path, published, artifact.files, self.keep_lease)
        size = (published / WEIGHTS).stat().st_size
        with transaction.atomic():
            # A stop of a whole study locks the project first too; the same order rules out a deadlock.
            run.project.hold()
            if not self.job.may_commit():
                return
            adapter = Adapter.objects.publish(run, content, artifact.files, size)
            self._write_end(run, end)
            # A study evaluates the adapters of all its arms in one job.
            if run.study_arm_id is None:
                Evaluation.objects.submit(adapter, self.job.created_by)

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
        fail_job(self.job, code, message)

    def record_failure(self) -> None:
        """Keep the curves up to the failure."""
        self.flush()


Recorder = ResultRecorder | TrainRecorder
RECORDERS: dict[Job.Kind, Callable[[Job, Path], Recorder]] = {
    Job.Kind.IMPORT: functools.partial(ResultRecorder, commit=commit_import),
    Job.Kind.INSPECT: functools.partial(ResultRecorder, commit=commit_inspection),
    Job.Kind.TRAIN: TrainRecorder,
    Job.Kind.EVALUATE: functools.partial(ResultRecorder, commit=commit_evaluation),
    Job.Kind.EXPORT: functools.partial(ResultRecorder, commit=commit_export),
    Job.Kind.PUSH: functools.partial(ResultRecorder, commit=commit_push),
    Job.Kind.SERVE: functools.partial(ResultRecorder, commit=commit_serving),
}
