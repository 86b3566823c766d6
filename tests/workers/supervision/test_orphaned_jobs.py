"""Release of jobs whose process has died, by processes of the same place only."""

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
    """Return the output of the code in a container on the same database and data folder."""
    result = subprocess.run(
        [*containers.COMMAND, sys.executable, "-c", SETUP + code],
        env=shared_environment(),
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


CLAIM = """
from dashboard.models import Job
from workers.supervision import device_lock
from workers.supervision.orphaned_jobs import holder
job = Job.objects.claim("gpu", worker="gpu0@twin", slot=device_lock.slot_name("gpu0@twin"), **holder())
print(job.host, flush=True)
"""
RELEASE = (
    "from workers.supervision.orphaned_jobs import release_orphaned_jobs; print(release_orphaned_jobs())"
)


def hold_by(pid: int) -> Job:
    """Claim a job as that process."""
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(pid=pid, pid_started=birth(pid))
    return job


def test_job_of_a_running_process_is_not_released(run: TrainingRun) -> None:
    claim("gpu")
    assert release_orphaned_jobs() == 0


def test_release_kills_the_engine_and_its_process_group(run: TrainingRun) -> None:
    dead = subprocess.Popen(["true"])
    engine = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], stdout=subprocess.PIPE, start_new_session=True)
    job = hold_by(dead.pid)
    Job.objects.filter(pk=job.pk).update(child_pid=engine.pid, child_started=birth(engine.pid))
    dead.wait()
    assert release_orphaned_jobs() == 1
    # The pipe closes when the last process of the group has ended.
    assert engine.communicate(timeout=10) == (b"", None)
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED


def test_release_completes_a_requested_cancel(run: TrainingRun) -> None:
    dead = subprocess.Popen(["true"])
    job = hold_by(dead.pid)
    job.request_cancel()
    dead.wait()
    assert release_orphaned_jobs() == 1
    job.refresh_from_db()
    assert job.state == State.CANCELLED


def test_changed_wall_clock_releases_no_job(run: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    claim("gpu")
    started: float = psutil.boot_time()
    # The boot time that the kernel reports after the clock was moved by ten minutes.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: started + 600)
    assert release_orphaned_jobs() == 0


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path, *, boot: str, namespace: str, known: str) -> None:
    """Simulate a machine."""
    (folder / "boot_id").write_text(boot)
    (folder / "machine-id").write_text(known)
    (folder / "pid").unlink(missing_ok=True)
    (folder / "pid").symlink_to(namespace)
    monkeypatch.setattr("workers.supervision.process_identity.BOOT_ID", folder / "boot_id")
    monkeypatch.setattr("workers.supervision.process_identity.MACHINE_ID", folder / "machine-id")
    monkeypatch.setattr("workers.supervision.process_identity.PID_NAMESPACE", folder / "pid")


OUTERMOST, CONTAINED = "pid:[4026531836]", "pid:[4026532179]"


def set_silence(job: Job, monkeypatch: pytest.MonkeyPatch, *, silent: float, uptime: float) -> None:
    """Set the seconds since the last renewal of the lease, and since the boot of this machine."""
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(LEASE - timedelta(seconds=silent)))
    monkeypatch.setattr("workers.supervision.orphaned_jobs.uptime", lambda: uptime)


def test_job_of_an_earlier_boot_is_released(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine(monkeypatch, tmp_path, boot="first", namespace=OUTERMOST, known="box")
    set_silence(claim("gpu"), monkeypatch, silent=50, uptime=40)
    machine(monkeypatch, tmp_path, boot="second", namespace=OUTERMOST, known="box")
    assert release_orphaned_jobs() == 1


@pytest.mark.parametrize(
    ("silent", "uptime", "why"),
    [
        (5, 3600, "its lease is fresh"),
        (50, 3600, "its lease was renewed since this boot"),
        (9, 5, "it is between two renewals"),
    ],
)
def test_job_of_a_copied_machine_is_not_released(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent: float, uptime: float, why: str
) -> None:
    machine(monkeypatch, tmp_path, boot="the copy's", namespace=OUTERMOST, known="box")
    set_silence(claim("gpu"), monkeypatch, silent=silent, uptime=uptime)
    machine(monkeypatch, tmp_path, boot="ours", namespace=OUTERMOST, known="box")
    assert release_orphaned_jobs() == 0, why


@pytest.mark.parametrize(
    ("namespace", "known", "why"),
    [
        (OUTERMOST, "another box", "another machine may have the same host name"),
        (OUTERMOST, "", "there is no machine id"),
        (CONTAINED, "box", "containers take the id from their image"),
    ],
)
def test_job_of_an_unidentified_machine_waits_for_its_lease(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, namespace: str, known: str, why: str
) -> None:
    before = "box" if known == "another box" else known
    machine(monkeypatch, tmp_path, boot="first", namespace=namespace, known=before)
    set_silence(claim("gpu"), monkeypatch, silent=50, uptime=40)
    machine(monkeypatch, tmp_path, boot="second", namespace=namespace, known=known)
    assert release_orphaned_jobs() == 0, why


def test_process_of_unknown_place_neither_releases_nor_is_released(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as unknown:
        unknown.setattr("workers.supervision.process_identity.PID_NAMESPACE", Path("/there/is/none"))
        assert holder()["host"] == ""
        job = claim("gpu")
        assert release_orphaned_jobs() == 0
    Job.objects.filter(pk=job.pk).update(pid=2**22, pid_started=1.0)
    assert release_orphaned_jobs() == 0


@needs_containers
@pytest.mark.django_db(transaction=True)
def test_container_releases_no_job_of_the_host(run: TrainingRun) -> None:
    job = claim("gpu")
    assert in_a_container(RELEASE) == "0"
    job.refresh_from_db()
    assert job.state == State.STARTING


@needs_containers
@pytest.mark.django_db(transaction=True)
def test_job_of_a_container_waits_for_its_lease(run: TrainingRun) -> None:
    host = in_a_container(CLAIM)
    assert host.startswith(f"{os.uname().nodename}/")
    assert host != str(here())
    # The host cannot see that the container has ended.
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
def test_nodes_of_one_name_in_two_containers_have_two_slots(
    run: TrainingRun, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    make_run(project, dataset, base_model, name="Another")
    in_a_container(CLAIM)
    job = Job.objects.claim("gpu", worker="gpu0@twin", slot=device_lock.slot_name("gpu0@twin"), **holder())
    assert job is not None
    assert Job.objects.live().count() == 2
