"""Recorders write results under the fence, and nothing for an attempt that has lost its job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dashboard.models import (
    Adapter,
    BaseModel,
    DatasetVersion,
    Evaluation,
    Job,
    MetricSeries,
    Project,
    State,
    TrainingRun,
    User,
)
from tests.workers.conftest import claim
from tests.workers.publishing import SUCCEEDED, make_artifact
from workers.contract.errors import ModelError
from workers.contract.events import ArmEnd, Metrics, Result
from workers.supervision import recorders
from workers.supervision.publish import publish_adapter
from workers.supervision.recorders import RECORDERS, TrainRecorder
from workers.tasks import attempt

DIVERGED = ArmEnd(arm=0, outcome="failed", step=3, code="diverged", message="The loss was no number.")


@pytest.fixture
def job(run: TrainingRun) -> Job:
    job = claim("gpu")
    job.move("progress")
    return job


def test_earlier_cancel_prevents_the_adapter(job: Job, run: TrainingRun, tmp_path: Path, ed: User) -> None:
    recorder = TrainRecorder(job, tmp_path)
    recorder.record(make_artifact(tmp_path))
    Job.objects.get(pk=job.pk).request_cancel(ed)
    recorder.record(SUCCEEDED)
    run.refresh_from_db()
    assert (run.outcome, Adapter.objects.count(), Evaluation.objects.count()) == ("", 0, 0)
    assert (tmp_path / "arm-0").exists()


def test_run_stopped_early_is_published_and_evaluated(job: Job, run: TrainingRun, tmp_path: Path) -> None:
    recorder = TrainRecorder(job, tmp_path)
    recorder.record(make_artifact(tmp_path))
    recorder.record(ArmEnd(arm=0, outcome="stopped_early", step=7, summary={"published_step": 4}))
    recorder.finish()
    run.refresh_from_db()
    job.refresh_from_db()
    assert (run.outcome, run.ended_step, job.state) == ("stopped_early", 7, State.SUCCEEDED)
    assert Adapter.objects.get().run == run
    assert Evaluation.objects.count() == 2


def test_repeated_event_is_written_once(job: Job, run: TrainingRun, tmp_path: Path) -> None:
    recorder = TrainRecorder(job, tmp_path)
    recorder.record(make_artifact(tmp_path))
    recorder.record(SUCCEEDED)
    recorder.record(SUCCEEDED)
    recorder.record(DIVERGED)
    run.refresh_from_db()
    assert (run.outcome, Adapter.objects.count()) == ("succeeded", 1)


def test_changed_adapter_file_fails_its_arm(job: Job, run: TrainingRun, tmp_path: Path) -> None:
    recorder = TrainRecorder(job, tmp_path)
    artifact = make_artifact(tmp_path)
    recorder.record(artifact)
    with (tmp_path / artifact.path / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    recorder.record(SUCCEEDED)
    run.refresh_from_db()
    job.refresh_from_db()
    assert (run.outcome, run.error_code, job.state) == ("failed", "publish_failed", State.FINALIZING)
    assert not Adapter.objects.exists()
    recorder.finish()
    job.refresh_from_db()
    assert (job.state, job.error_code) == (State.FAILED, "publish_failed")


def test_an_engine_without_a_result_fails_its_job(job: Job, tmp_path: Path) -> None:
    recorder = RECORDERS[Job.Kind.IMPORT](job, tmp_path)
    recorder.finish()
    job.refresh_from_db()
    assert (job.state, job.error_code) == (State.FAILED, "internal_error")


def test_project_is_locked_before_the_job(
    job: Job, run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, may_commit, locked = Project.hold, Job.may_commit, []

    def hold_project(project: Project) -> None:
        locked.append("project")
        hold(project)

    def lock_job(job: Job) -> bool:
        locked.append("job")
        return may_commit(job)

    recorder = TrainRecorder(job, tmp_path)
    recorder.record(make_artifact(tmp_path))
    begin = recorders.publish_adapter

    def publish_and_listen(*paths: object) -> None:
        begin(*paths)  # type: ignore[arg-type]
        monkeypatch.setattr(Project, "hold", hold_project)
        monkeypatch.setattr(Job, "may_commit", lock_job)

    monkeypatch.setattr(recorders, "publish_adapter", publish_and_listen)
    recorder.record(SUCCEEDED)
    assert locked == ["project", "job"]
    assert Adapter.objects.get().run == run


def test_job_is_finalizing_while_it_publishes(
    job: Job, run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look_and_publish(*paths: object) -> None:
        seen.append(Job.objects.get(pk=job.pk).state)
        publish_adapter(*paths)  # type: ignore[arg-type]

    monkeypatch.setattr(recorders, "publish_adapter", look_and_publish)
    recorder = TrainRecorder(job, tmp_path)
    recorder.record(make_artifact(tmp_path))
    recorder.record(SUCCEEDED)
    recorder.finish()
    job.refresh_from_db()
    assert (seen, job.state) == ([State.FINALIZING], State.SUCCEEDED)


def test_cancel_while_publishing_prevents_the_adapter(
    job: Job, run: TrainingRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish_and_stop(*paths: object) -> None:
        publish_adapter(*paths)  # type: ignore[arg-type]
        assert Job.objects.get(pk=job.pk).request_cancel()

    monkeypatch.setattr(recorders, "publish_adapter", publish_and_stop)
    recorder = TrainRecorder(job, tmp_path)
    recorder.record(make_artifact(tmp_path))
    recorder.record(SUCCEEDED)
    run.refresh_from_db()
    job.refresh_from_db()
    assert (run.outcome, job.state, Adapter.objects.count()) == ("", State.CANCELLING, 0)


def beside(run: TrainingRun) -> TrainingRun:
    """Add another run to the same job."""
    other = TrainingRun.objects.get(pk=run.pk)
    other.pk, other._state.adding, other.name = None, True, "The other"
    other.save()
    return other


def test_job_with_only_cancelled_arms_is_cancelled(job: Job, run: TrainingRun, tmp_path: Path) -> None:
    beside(run)
    recorder = TrainRecorder(job, tmp_path)
    for arm in (0, 1):
        recorder.record(ArmEnd(arm=arm, outcome="cancelled", step=0))
    recorder.finish()
    job.refresh_from_db()
    assert (job.state, job.error, job.keeps_checkpoint) == (State.CANCELLED, None, False)


def test_replaced_attempt_writes_nothing(job: Job, run: TrainingRun, tmp_path: Path) -> None:
    recorder = TrainRecorder(job, tmp_path)
    Job.objects.filter(pk=job.pk).update(attempt=2)
    recorder.record(Metrics(0, 1, {"train/loss": 2.0}))
    recorder.record(DIVERGED)
    run.refresh_from_db()
    assert (run.outcome, MetricSeries.objects.count()) == ("", 0)


def test_ended_arm_is_not_trained_again(job: Job, run: TrainingRun, tmp_path: Path) -> None:
    recorder = TrainRecorder(job, tmp_path)
    recorder.record(make_artifact(tmp_path))
    recorder.record(SUCCEEDED)
    job.interrupt("The worker died after the commit.")
    Job.objects.filter(pk=job.pk).update(state=State.QUEUED, run_after="2026-01-01T00:00Z", priority=9)
    again = claim("gpu")
    attempt(again, lambda: False)
    again.refresh_from_db()
    assert (again.pk, again.state, again.child_pid) == (job.pk, State.SUCCEEDED, None)
    assert Adapter.objects.get().run == run


def test_evaluated_rows_keep_line_separators_and_drop_nan(job: Job, run: TrainingRun, tmp_path: Path) -> None:
    recorder = TrainRecorder(job, tmp_path)
    recorder.record(make_artifact(tmp_path))
    recorder.record(SUCCEEDED)
    recorder.finish()
    scoring = claim("gpu")
    scoring.move("progress")
    item = {
        "row": 1,
        "system": "s",
        "prompt": "a\u2028b\x85c\x00d",
        "expected": "e",
        "output": "",
        "group": 7,
        "scores": {"loss": float("nan")},
    }
    subjects = [evaluation.subject_name for evaluation in scoring.evaluations.all()]
    lines = [json.dumps({**item, "subject": subject}, ensure_ascii=False) for subject in subjects]
    (tmp_path / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    evaluated = RECORDERS[Job.Kind.EVALUATE](scoring, tmp_path)
    speeds = {"ms_per_token": {"base": 20.0} | dict.fromkeys(subjects, 25.0)}
    marks = {subject: [place, 1] for place, subject in enumerate(subjects)}
    asked = {"general_questions": {"version": 1, "sha256": "ab", "choices": 4, "marks": marks}}
    found = {subject: {"loss": 1.0} for subject in subjects}
    evaluated.record(
        Result(
            {"rows": 1, "split_sha256": "12" * 32, "dtype": "float32", "device": "cpu"}
            | speeds
            | asked
            | found
        )
    )
    evaluated.finish()
    # The import has frozen the test rows, so what was read now changes nothing.
    assert run.dataset_version.test_sha256 == "ef" * 32
    run.dataset_version.refresh_from_db()
    assert run.dataset_version.test_sha256 == "ef" * 32
    for evaluation in Evaluation.objects.all():
        kept = evaluation.items.get()
        assert (kept.prompt, kept.scores) == ("a\u2028b\x85c\ufffdd", {"loss": None})
        assert (kept.group, kept.system) == (7, "s")
        assert (evaluation.metrics["loss"], evaluation.metrics["ms_per_token"]) == (1.0, 25.0)
        assert evaluation.general_questions["marks"] == marks[evaluation.subject_name]
        assert evaluation.general_questions["sha256"] == "ab"


def test_first_evaluation_freezes_unfrozen_test_rows(run: TrainingRun) -> None:
    version = run.dataset_version
    DatasetVersion.objects.update(test_sha256="")
    for found in ("12" * 32, "34" * 32):
        version.freeze_test_rows(found)
    version.refresh_from_db()
    assert version.spec().test_sha256 == "12" * 32


def test_base_model_at_the_same_revision_is_refused(project: Project, tmp_path: Path) -> None:
    found = {"census": {}, "path": "/models/x", "sha256": "ab" * 32, "parameters": 1, "revision": "c0ffee"}
    found["license"] = "see the file " * 20
    for _time in range(2):
        hub = BaseModel.Source.HUB
        BaseModel.objects.add(project=project, by=None, source=hub, name="Tiny", hub_id="example/tiny")
        job = claim("cpu")
        job.move("progress")
        recorder = RECORDERS[Job.Kind.INSPECT](job, tmp_path)
        recorder.record(Result(found))
        if BaseModel.objects.filter(revision="c0ffee").exists():
            with pytest.raises(ModelError, match="already"):
                recorder.finish()
        else:
            recorder.finish()
    assert len(BaseModel.objects.get(revision="c0ffee").license) == 100, "PostgreSQL refuses more"
