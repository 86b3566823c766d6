"""Jobs whose process is gone: who may say so, and who may not."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from django.conf import settings

from dashboard.management.commands.dispatch import Dispatcher
from dashboard.models import BaseModel, Dataset, Job, Project, State, TrainingRun, WorkerNode
from dashboard.models.jobs.job_state import LEASE, db_now
from tests import containers
from tests.conftest import make_run, shared_environment
from tests.workers.conftest import claim
from workers.supervision import device_lock
from workers.supervision.orphaned_jobs import holder, release_orphaned_jobs
from workers.supervision.process_identity import birth, here

SETUP = "import django; django.setup()\n"
needs_containers = pytest.mark.skipif(
    not containers.are_available(), reason="This account may not make PID namespaces."
)


def in_a_container(code: str) -> str:
    """What the code prints in a container that works on the same database and data folder."""
    said = subprocess.run(
        [*containers.COMMAND, sys.executable, "-c", SETUP + code],
        env=shared_environment(),
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


CLAIM = """
from dashboard.models import Job
from workers import slots
from workers.supervision.orphaned_jobs import holder
job = Job.objects.claim("gpu", worker="gpu0@twin", slot=slots.slot_name("gpu0@twin"), **holder())
print(job.host, flush=True)
"""
RELEASE = (
    "from workers.supervision.orphaned_jobs import release_orphaned_jobs; print(release_orphaned_jobs())"
)


def hold_by(pid: int) -> Job:
    """A claimed job whose holder is that process."""
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(pid=pid, pid_started=birth(pid))
    return job


def test_a_job_of_a_living_process_is_left_alone(run: TrainingRun) -> None:
    claim("gpu")
    assert release_orphaned_jobs() == 0


def test_the_engine_of_a_dead_process_goes_with_it(run: TrainingRun) -> None:
    dead, engine = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "60"])
    job = hold_by(dead.pid)
    Job.objects.filter(pk=job.pk).update(child_pid=engine.pid, child_started=birth(engine.pid))
    dead.wait()
    assert release_orphaned_jobs() == 1
    assert engine.wait(timeout=10) < 0
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED


def test_what_the_engine_has_started_goes_with_it(run: TrainingRun) -> None:
    dead = subprocess.Popen(["true"])
    # As the engine it leads a group of its own.
    engine = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], stdout=subprocess.PIPE, start_new_session=True)
    job = hold_by(dead.pid)
    Job.objects.filter(pk=job.pk).update(child_pid=engine.pid, child_started=birth(engine.pid))
    dead.wait()
    assert release_orphaned_jobs() == 1
    # The pipe ends once nobody holds it.
    assert engine.communicate(timeout=10) == (b"", None)


def test_a_stop_is_complete_once_its_process_is_gone(run: TrainingRun) -> None:
    dead = subprocess.Popen(["true"])
    job = hold_by(dead.pid)
    job.request_cancel()
    dead.wait()
    assert release_orphaned_jobs() == 1
    job.refresh_from_db()
    assert job.state == State.CANCELLED


def test_a_clock_that_is_set_takes_no_job_from_its_process(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim("gpu")
    started: float = psutil.boot_time()
    # A test cannot set the machine's clock; this is what the kernel says of its own start afterwards.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: started + 600)
    assert release_orphaned_jobs() == 0


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path, *, boot: str, namespace: str, known: str) -> None:
    """Let this process see such a machine."""
    (folder / "boot_id").write_text(boot)
    (folder / "machine-id").write_text(known)
    (folder / "pid").unlink(missing_ok=True)
    (folder / "pid").symlink_to(namespace)
    monkeypatch.setattr("workers.supervision.process_identity.BOOT_ID", folder / "boot_id")
    monkeypatch.setattr("workers.supervision.process_identity.MACHINE_ID", folder / "machine-id")
    monkeypatch.setattr("workers.supervision.process_identity.PID_NAMESPACE", folder / "pid")


OUTERMOST, CONTAINED = "pid:[4026531836]", "pid:[4026532179]"


def hear(job: Job, monkeypatch: pytest.MonkeyPatch, *, silent: float, uptime: float) -> None:
    """Let the job's holder have been silent for so many seconds, and this machine have run for so many."""
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(LEASE - timedelta(seconds=silent)))
    monkeypatch.setattr("workers.supervision.orphaned_jobs.uptime", lambda: uptime)


def test_after_a_restart_of_the_machine_equal_numbers_name_nobody(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch, tmp_path, boot="first", namespace=OUTERMOST, known="box")
    hear(claim("gpu"), monkeypatch, silent=50, uptime=40)
    machine(monkeypatch, tmp_path, boot="second", namespace=OUTERMOST, known="box")
    assert release_orphaned_jobs() == 1


@pytest.mark.parametrize(
    ("silent", "uptime", "why"),
    [
        (5, 3600, "it works"),
        (50, 3600, "it worked in this start of this machine, so elsewhere"),
        (9, 5, "it is between two signs of life"),
    ],
)
def test_a_copy_of_this_machine_keeps_its_jobs(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent: float, uptime: float, why: str
) -> None:
    """It has the same host name, machine id and account, but a start of its own."""
    machine(monkeypatch, tmp_path, boot="the copy's", namespace=OUTERMOST, known="box")
    hear(claim("gpu"), monkeypatch, silent=silent, uptime=uptime)
    machine(monkeypatch, tmp_path, boot="ours", namespace=OUTERMOST, known="box")
    assert release_orphaned_jobs() == 0, why


@pytest.mark.parametrize(
    ("namespace", "known", "why"),
    [
        (OUTERMOST, "another box", "that may be another machine of the same host name"),
        (OUTERMOST, "", "nothing tells machines apart"),
        (CONTAINED, "box", "the id of a container comes with its image"),
    ],
)
def test_an_earlier_start_of_who_knows_which_machine_is_left_to_its_lease(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, namespace: str, known: str, why: str
) -> None:
    before = "box" if known == "another box" else known
    machine(monkeypatch, tmp_path, boot="first", namespace=namespace, known=before)
    hear(claim("gpu"), monkeypatch, silent=50, uptime=40)
    machine(monkeypatch, tmp_path, boot="second", namespace=namespace, known=known)
    assert release_orphaned_jobs() == 0, why


def test_who_cannot_tell_its_place_neither_judges_nor_is_judged(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("workers.supervision.process_identity.PID_NAMESPACE", Path("/there/is/none"))
        assert holder()["host"] == ""
        job = claim("gpu")
        assert release_orphaned_jobs() == 0
    Job.objects.filter(pk=job.pk).update(pid=2**22, pid_started=1.0)
    assert release_orphaned_jobs() == 0


@needs_containers
@pytest.mark.django_db(transaction=True)
def test_a_container_of_the_same_host_name_does_not_take_a_living_job(run: TrainingRun) -> None:
    job = claim("gpu")
    assert in_a_container(RELEASE) == "0"
    job.refresh_from_db()
    assert job.state == State.STARTING


@needs_containers
@pytest.mark.django_db(transaction=True)
def test_the_job_of_a_container_is_not_judged_from_outside(run: TrainingRun) -> None:
    """Its process numbers mean other processes here, or none."""
    host = in_a_container(CLAIM)
    assert host.startswith(f"{os.uname().nodename}/")
    assert host != str(here())
    # The container is gone, but nobody can know that from outside: the lease tells.
    assert release_orphaned_jobs() == 0
    assert Job.objects.get(host=host).state == State.STARTING
    Job.objects.filter(host=host).update(lease_until=db_now(-timedelta(seconds=1)))
    WorkerNode.objects.register("dispatcher-1@elsewhere", kind=WorkerNode.Kind.DISPATCHER, host="box", pid=1)
    dispatcher = Dispatcher()
    dispatcher.beat()
    dispatcher.recover_jobs()
    assert Job.objects.get(host=host).state == State.INTERRUPTED


@needs_containers
@pytest.mark.django_db(transaction=True)
def test_nodes_of_the_same_name_in_two_containers_work_at_the_same_time(
    run: TrainingRun, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    make_run(project, dataset, base_model, name="Another")
    in_a_container(CLAIM)
    job = Job.objects.claim("gpu", worker="gpu0@twin", slot=device_lock.slot_name("gpu0@twin"), **holder())
    assert job is not None
    assert Job.objects.live().count() == 2
