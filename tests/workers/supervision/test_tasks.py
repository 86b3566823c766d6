"""Jobs of each kind with a real engine, from the claimed row to the stored result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings

from dashboard.models import (
    Adapter,
    BaseModel,
    Dataset,
    Evaluation,
    Job,
    MetricSeries,
    Project,
    State,
    TrainingRun,
    User,
)
from tests.conftest import make_run
from tests.workers.conftest import claim, kill_engine, run_script, run_until
from workers.supervision import device_lock
from workers.supervision.orphaned_jobs import holder
from workers.tasks import attempt

WorkOff = Callable[[str], Job]


def test_upload_becomes_an_immutable_version(
    project: Project, ed: User, tiny_folder: Path, work_off: WorkOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "BUNDLED_MODEL_DIR", tiny_folder)
    upload = Path(settings.UPLOAD_DIR) / "forty.jsonl"
    upload.write_text("\n".join(f'{{"prompt": "number {n}", "completion": "is {n % 7}"}}' for n in range(40)))
    version = Dataset.objects.named(project, "Forty", ed).add_version(upload, upload.name, by=ed)
    assert work_off("cpu").state == State.SUCCEEDED
    version.refresh_from_db()
    assert (version.rows, sum(version.splits.values())) == (40, 40)
    assert (version.folder() / "train.parquet").exists()
    assert "number" in version.preview()[0]["text"]
    with pytest.raises(ValueError, match="never changes"):
        version.import_again(ed)


def test_base_model_gets_a_census(project: Project, tiny_folder: Path, work_off: WorkOff) -> None:
    shutil.copytree(tiny_folder, Path(settings.DATA_DIR) / "models" / "tiny", dirs_exist_ok=True)
    base = BaseModel.objects.create(
        project=project, source=BaseModel.Source.FOLDER, folder="tiny", name="Tiny", hub_id="example/tiny"
    )
    base.inspect()
    assert work_off("cpu").state == State.SUCCEEDED
    base.refresh_from_db()
    assert base.is_ready
    assert base.load_census().num_layers == 2
    assert len(base.sha256) == 64


# A backward search that takes hours inside of one call, in which no signal is looked at.
ENDLESS_TEMPLATE = "{{ ('a' * 9999999).rfind('ab' + 'a' * 4999998) }}"


def test_endless_chat_template_fails_its_job_and_the_worker_takes_the_next(
    project: Project, tiny_folder: Path, work_off: WorkOff
) -> None:
    bases = []
    for name in ("endless", "harmless"):
        folder = Path(settings.DATA_DIR) / "models" / name
        shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
        bases.append(
            BaseModel.objects.create(
                project=project, source=BaseModel.Source.FOLDER, folder=name, name=name, hub_id=f"a/{name}"
            )
        )
        bases[-1].inspect()
    (Path(settings.DATA_DIR) / "models/endless/chat_template.jinja").write_text(ENDLESS_TEMPLATE)
    failed, succeeded = work_off("cpu"), work_off("cpu")
    assert (failed.state, failed.error_code) == (State.FAILED, "bad_model")
    assert "chat template needs more than 2 s" in failed.error_message
    assert succeeded.state == State.SUCCEEDED


def test_run_gets_an_adapter_and_evaluations(
    real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User, work_off: WorkOff
) -> None:
    run = make_run(project, real_dataset, real_base, by=ed)
    job = work_off("gpu")
    run.refresh_from_db()
    assert (job.state, run.state, run.step, run.total_steps) == (State.SUCCEEDED, "succeeded", 10, 10), (
        job.error
    )
    # A base model in a folder has no revision; its hash stands for it.
    assert [name for name, value in run.origin.items() if value in (None, "")] == [
        "base_revision",
        "validation_sha256",
    ]
    adapter = Adapter.objects.get(run=run)
    assert (str(adapter), adapter.size_bytes) == ("Triage:v1", run.forecast["adapter_bytes"])
    losses = MetricSeries.objects.get(run=run, name="train/loss").points()
    assert [step for step, _loss in losses] == list(range(1, 11))
    assert MetricSeries.objects.filter(run=run, name="validation/loss").exists()
    assert work_off("gpu").state == State.SUCCEEDED
    base, tuned = Evaluation.objects.filter(run=run)
    assert base.rows == tuned.rows == tuned.items.count()
    assert all(item.group for item in tuned.items.all())
    assert {"loss", "perplexity", "exact_match", "token_f1"} <= set(tuned.metrics)
    assert tuned.metrics["loss"] < base.metrics["loss"]
    make_run(project, real_dataset, real_base, by=ed, max_steps=1)
    work_off("gpu")
    assert [adapter.version for adapter in Adapter.objects.order_by("pk")] == [1, 2]


def test_bad_file_fails_with_its_rows(
    project: Project, ed: User, tiny_folder: Path, work_off: WorkOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "BUNDLED_MODEL_DIR", tiny_folder)
    upload = Path(settings.UPLOAD_DIR) / "bad.jsonl"
    upload.write_text('{"prompt": "a", "completion": "b"}\n' * 9 + '{"prompt": "only"}\n')
    version = Dataset.objects.named(project, "Bad", ed).add_version(upload, upload.name, by=ed)
    job = work_off("cpu")
    version.refresh_from_db()
    assert (job.state, job.error_code) == (State.FAILED, "bad_data")
    assert [problem["row"] for problem in version.problems] == [10]


def test_table_with_unknown_columns_is_imported_again_with_a_mapping(
    project: Project, ed: User, tiny_folder: Path, work_off: WorkOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "BUNDLED_MODEL_DIR", tiny_folder)
    upload = Path(settings.UPLOAD_DIR) / "table.csv"
    upload.write_text("sentence,label\n" + "".join(f"number {n},{n % 3}\n" for n in range(12)))
    version = Dataset.objects.named(project, "Table", ed).add_version(upload, upload.name, by=ed)
    assert work_off("cpu").error_code == "columns_unclear"
    version.refresh_from_db()
    assert version.needs_columns
    assert version.report["columns"] == ["sentence", "label"]
    version.import_again(ed, prompt_column="sentence", completion_column="label")
    assert work_off("cpu").state == State.SUCCEEDED
    version.refresh_from_db()
    assert (version.rows, version.version) == (12, 1)


@pytest.mark.django_db(transaction=True)
def test_cancel_stops_a_running_engine(
    real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User
) -> None:
    run = make_run(project, real_dataset, real_base, by=ed, max_steps=100_000)
    job = claim("gpu")
    requested: list[float] = []

    def stop_it() -> None:
        requested.append(time.monotonic())
        Job.objects.get(pk=job.pk).request_cancel(ed)

    run_until(job, lambda: Job.objects.get(pk=job.pk).step > 0, stop_it)
    ended = time.monotonic()
    run.refresh_from_db()
    assert run.state == "cancelled"
    assert ended - requested[0] < 15
    assert not Adapter.objects.filter(run=run).exists()


@pytest.mark.django_db(transaction=True)
def test_killed_engine_interrupts_the_job(
    real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User
) -> None:
    run = make_run(project, real_dataset, real_base, by=ed, max_steps=100_000)
    job = claim("gpu")
    run_until(job, lambda: Job.objects.get(pk=job.pk).child_pid is not None, lambda: kill_engine(job))
    job.refresh_from_db()
    run.refresh_from_db()
    assert (job.state, run.state) == (State.INTERRUPTED, "interrupted")
    # Other tests leave folders of their jobs.
    assert not list((Path(settings.DATA_DIR) / "work").glob(f"job-{job.pk}-*"))


def test_drain_interrupts_the_job(
    real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User
) -> None:
    make_run(project, real_dataset, real_base, by=ed, max_steps=100_000)
    job = claim("gpu")
    attempt(job, lambda: True)
    job.refresh_from_db()
    assert (job.state, job.failed_attempts) == (State.INTERRUPTED, 0)


def test_each_pool_process_of_a_node_holds_one_job(
    real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User
) -> None:
    for _ in range(3):
        make_run(project, real_dataset, real_base, by=ed)
    slots = [device_lock.slot_name("gpu0@here", index) for index in (0, 1, 1)]
    claimed = [Job.objects.claim("gpu", worker="gpu0@here", slot=slot, **holder()) for slot in slots]
    assert [job is not None for job in claimed] == [True, True, False]


@pytest.fixture
def leftover(run: TrainingRun) -> Iterator[Path]:
    """A checkpoint folder of an older database, which exists before the first attempt."""
    folder = Job.objects.get(training_runs=run).checkpoint_folder() / "000001"
    # Another test of this process may have left the folder of a job with the same id.
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    shutil.rmtree(folder.parent, ignore_errors=True)


def test_first_attempt_deletes_checkpoints_of_an_older_database(
    leftover: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_script(
        f'emit("Message", text=str(os.path.exists({str(leftover)!r})))', job := claim("gpu"), monkeypatch
    )
    assert job.events.get(event="message").text == "False"


def test_replaced_first_attempt_deletes_no_checkpoint(leftover: Path) -> None:
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(attempt=2)
    attempt(job, lambda: False)
    assert leftover.exists(), "they are those of the second attempt"
    assert Job.objects.get(pk=job.pk).state == State.STARTING
