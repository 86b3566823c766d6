"""The broker loses all messages: a real dispatcher and worker still run every job once.

The engines are scripts, because importing torch for each job would take minutes.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis

from dashboard.models import BaseModel, Job, JobEvent, Outbox, Project, State
from tests.conftest import tiny_census
from tests.workers.programs import running, wait_until
from workers.contract.events import Finished, Progress, Result, to_line

JOBS = 100
WORKER = """
import sys
from workers.celery import app
from workers.supervision import engine_process
engine_process.ENGINE = (sys.executable, sys.argv[1])
app.worker_main(["worker", "--pool=prefork", "-c", "2", "-Q", "cpu", "-n", "cpu@%h",
                 "--without-gossip", "--without-mingle", "--loglevel=WARNING"])
"""


@pytest.mark.proof
@pytest.mark.django_db(transaction=True)
def test_jobs_run_once_after_the_broker_lost_their_messages(
    project: Project, broker: Redis, tmp_path: Path
) -> None:
    values = {"census": tiny_census(), "path": "/nowhere", "sha256": "ab" * 32, "parameters": 40_000}
    lines = [to_line(event) for event in (Progress("reading"), Result(values), Finished("done"))]
    child = tmp_path / "child.py"
    child.write_text(f"import sys\nsys.stdin.readline()\nsys.stdout.write({''.join(lines)!r})\n")
    for number in range(JOBS):
        BaseModel.objects.create(
            project=project,
            source="folder",
            folder=f"m{number}",
            name=f"M {number}",
            hub_id=f"example/m{number}",
        ).inspect()
    jobs = Job.objects.filter(kind=Job.Kind.INSPECT, project=project)
    with ExitStack() as stack:
        stack.enter_context(running("manage.py", "dispatch"))
        wait_until(lambda: not Outbox.objects.filter(job__in=jobs, sent_at=None).exists(), "all published")
        assert broker.llen("graftworks:cpu") >= JOBS
        broker.flushall()
        stack.enter_context(running("-c", WORKER, str(child)))
        wait_until(lambda: jobs.filter(state=State.SUCCEEDED).count() == JOBS, "all done", 240)
    assert set(jobs.values_list("state", "attempt")) == {(State.SUCCEEDED, 1)}
    assert JobEvent.objects.filter(job__in=jobs, event="claim").count() == JOBS
    assert BaseModel.objects.filter(project=project, sha256="ab" * 32).count() == JOBS
