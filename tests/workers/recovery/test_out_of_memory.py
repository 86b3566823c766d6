"""A training without enough memory is retried once with a smaller batch, then it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError
from django.db.models import F
from django.db.models.functions import Now

from dashboard.models import Adapter, BaseModel, Dataset, Job, JobEvent, Project, State, TrainingRun, User
from tests.conftest import make_run
from tests.workers.conftest import claim, run_script
from workers.contract.hyperparameters import Hyperparameters
from workers.supervision import engine_process, stop_policy

TOO_LITTLE = """
emit("Failure", code="out_of_memory", message="There was not enough memory.")
emit("Finished", reason="failed")
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)\n"
# The kernel counts the kill in the control group.
STARVED = """
import pathlib
counts = pathlib.Path({counts!r})
counts.write_text(f"oom 4\\noom_kill {{int(counts.read_text().split()[-1]) + 1}}\\n")
os.kill(os.getpid(), signal.SIGKILL)
"""
# The real engine with an address space, or on a GPU an allowance, too small for more than four rows at once.
STARVING = """
import resource, sys
import psutil, torch
from workers.engine import __main__ as engine
from workers.engine.training.loss import Scorer

collate = Scorer.collate

def starved(scorer, examples, *arguments, **options):
    if len(examples) > 4 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(
            torch.cuda.memory_reserved() / torch.cuda.mem_get_info()[1]
        )
        torch.empty(1 << 28, device="cuda")
    elif len(examples) > 4:
        held = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (held, held))
        torch.empty(1 << 28)
    return collate(scorer, examples, *arguments, **options)

Scorer.collate = starved
sys.exit(engine.main())
"""
STEPPED = """
emit("Progress", phase="training", step=0, total=9)
emit("Progress", phase="training", step=1, total=9)
time.sleep(0.3)
"""
SCORED = """
emit("Progress", phase="scoring", step=1, total=9)
time.sleep(0.3)
"""


@pytest.fixture
def job(run: TrainingRun) -> Job:
    return claim("gpu")


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    """The file in which the kernel counts its kills for lack of memory."""
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    group = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
    file = tmp_path / group / "memory.events"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("oom 4\noom_kill 3\n")
    return file


@pytest.fixture
def starved(counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Script of an engine that is killed, with a count in its control group."""
    monkeypatch.setattr(engine_process, "CGROUPS", tmp_path)
    return STARVED.format(counts=str(counts))


@pytest.fixture
def scoring(run: TrainingRun) -> Job:
    """A claimed evaluation."""
    Job.objects.all().update(state=State.FAILED, finished_at=Now())
    Job.objects.submit(Job.Kind.EVALUATE, {}, project=run.project, by=None)
    return claim("gpu")


def again(job: Job) -> Job:
    """The next attempt of an interrupted job."""
    job.requeue_or_fail()
    Job.objects.filter(pk=job.pk).update(run_after=F("created_at"))
    return claim("gpu")


def batch(job: Job) -> tuple[int, int]:
    learn = job.spec["hyperparameters"]
    return learn["per_device_train_batch_size"], learn["gradient_accumulation_steps"]


def test_training_is_retried_with_half_the_batch(
    job: Job, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run_script(TOO_LITTLE, job, monkeypatch)
    run.refresh_from_db()
    assert (ended.state, ended.ignored_attempts, batch(ended)) == (State.INTERRUPTED, 1, (4, 2))
    changes = {"per_device_train_batch_size": [8, 4], "gradient_accumulation_steps": [1, 2]}
    assert run.adjustments == [{"reason": "out_of_memory", "attempt": 1, "changes": changes}]
    assert batch_of(run) == (8, 1), "the chosen value stays visible"
    text = JobEvent.objects.get(job=job, event="interrupt").text
    assert "batches of 4 rows instead of 8" in text
    assert "each step still learns from 8 rows" in text


def test_batch_is_halved_once_despite_a_database_outage(
    job: Job, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt = Job.interrupt
    lost: list[str] = []

    def lose_the_first(job: Job, *arguments: Any, **options: Any) -> None:
        interrupt(job, *arguments, **options)
        if not lost:
            lost.append(job.state)
            raise OperationalError("the connection was lost")

    monkeypatch.setattr(Job, "interrupt", lose_the_first)
    ended = run_script(TOO_LITTLE, job, monkeypatch)
    run.refresh_from_db()
    assert lost
    assert (ended.state, ended.ignored_attempts, batch(ended)) == (State.INTERRUPTED, 1, (4, 2))
    assert run.adjustments[0]["changes"]["per_device_train_batch_size"] == [8, 4]


def batch_of(run: TrainingRun) -> tuple[int, int]:
    learn = run.hyperparameters
    return learn["per_device_train_batch_size"], learn["gradient_accumulation_steps"]


def test_second_lack_of_memory_fails_the_job(
    job: Job, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run_script(TOO_LITTLE, again(run_script(TOO_LITTLE, job, monkeypatch)), monkeypatch)
    run.refresh_from_db()
    assert (ended.state, ended.error_code, run.state) == (State.FAILED, "out_of_memory", "failed")
    assert len(run.adjustments) == 1


def test_batch_of_one_is_not_retried(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(project, dataset, base_model, by=ed, per_device_train_batch_size=1)
    assert run_script(TOO_LITTLE, claim("gpu"), monkeypatch).state == State.FAILED


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, 1), (4, 2)), ((7, 1), (1, 7)), ((6, 5), (3, 10)), ((5, 2), (2, 5))],
)
def test_smaller_batch_keeps_the_rows_per_step(before: tuple[int, int], after: tuple[int, int]) -> None:
    learn = Hyperparameters(per_device_train_batch_size=before[0], gradient_accumulation_steps=before[1])
    smaller = learn.with_smaller_batch()
    assert smaller is not None
    assert (smaller.per_device_train_batch_size, smaller.gradient_accumulation_steps) == after
    assert smaller.rows_per_step == learn.rows_per_step


def test_counted_oom_kill_is_retried_with_half_the_batch(
    job: Job, run: TrainingRun, starved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run_script(starved, job, monkeypatch)
    run.refresh_from_db()
    assert (ended.state, ended.ignored_attempts, batch(ended)) == (State.INTERRUPTED, 1, (4, 2))
    assert run.adjustments[0]["reason"] == "out_of_memory"
    text = JobEvent.objects.get(job=job, event="interrupt").text
    assert text.startswith("The machine ran out of memory, so its kernel killed the engine. It is tried once")


def test_second_oom_kill_fails_the_job_despite_progress(
    job: Job, starved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run_script(STEPPED + starved, again(run_script(STEPPED + starved, job, monkeypatch)), monkeypatch)
    assert (ended.state, ended.error_code, ended.attempt) == (State.FAILED, "out_of_memory", 2)


def test_oom_kill_fails_an_evaluation(scoring: Job, starved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run_script(SCORED + starved, scoring, monkeypatch)
    assert (ended.state, ended.error_code) == (State.FAILED, "out_of_memory")


def test_crashing_evaluation_fails_after_three_attempts(
    scoring: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = SCORED + "os.kill(os.getpid(), signal.SIGSEGV)\n"
    for _attempt in range(2):
        scoring = again(run_script(dies, scoring, monkeypatch))
    ended = run_script(dies, scoring, monkeypatch)
    assert (ended.state, ended.error_code, ended.attempt) == (State.FAILED, "worker_lost", 3)


@pytest.mark.usefixtures("starved")
def test_uncounted_kill_is_not_a_lack_of_memory(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for _attempt in range(2):
        job = run_script(KILLED, job, monkeypatch)
        assert job.state == State.INTERRUPTED
        assert "outside Graftworks" in JobEvent.objects.filter(job=job, event="interrupt").latest("seq").text
        job = again(job)
    ended = run_script(KILLED, job, monkeypatch)
    assert (ended.state, ended.error_code) == (State.FAILED, "worker_lost")


def test_kill_by_the_supervisor_does_not_count_as_failure(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stop_policy.GRACE_SECONDS, "drain", 0.5)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)\n"
    ended = run_script(deaf, job, monkeypatch, lambda: True)
    assert (ended.state, ended.ignored_attempts) == (State.INTERRUPTED, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param("cpu", marks=pytest.mark.proof), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_real_engine_without_memory_succeeds_with_half_the_batch(
    real_base: BaseModel,
    real_dataset: Dataset,
    project: Project,
    ed: User,
    work_off: Callable[[str], Job],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    if kind == "cpu":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = make_run(project, real_dataset, real_base, by=ed, max_steps=3)
    path = Path(settings.DATA_DIR) / "starving.py"
    path.write_text(STARVING)
    with monkeypatch.context() as starving:
        starving.setattr(engine_process, "ENGINE", (sys.executable, str(path)))
        ended = work_off("gpu")
    assert (ended.state, batch(ended)) == (State.INTERRUPTED, (4, 2)), ended.log_tail()
    assert "There was not enough memory" in JobEvent.objects.get(job=ended, event="interrupt").text
    ended.requeue_or_fail()
    Job.objects.filter(pk=ended.pk).update(run_after=F("created_at"))
    ended = work_off("gpu")
    assert ended.state == State.SUCCEEDED, ended.error
    assert Adapter.objects.filter(run=run).count() == 1
    run.refresh_from_db()
    assert run.measured["device"].startswith(kind)
