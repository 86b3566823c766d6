"""Many processes claim from one queue at once: each job goes to exactly one of them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from django.conf import settings
from django.db import transaction

from dashboard.models import Job, JobEvent, Project, State
from tests.conftest import shared_environment

# The processes are forked before the first connection, so that each has its own.
RACE = """
import json, multiprocessing, os, sys
import django
django.setup()
from dashboard.models import Job

def claim_all(number, start, results):
    start.wait()
    claimed = []
    while Job.objects.waiting("cpu").exists():
        job = Job.objects.claim(
            "cpu", worker=f"cpu{number}", slot=None, host="host", pid=os.getpid(), pid_started=1.0)
        if job:
            claimed.append(job.pk)
    results.put(claimed)

fork = multiprocessing.get_context("fork")
number = int(sys.argv[1])
start, results = fork.Barrier(number), fork.Queue()
claimers = [fork.Process(target=claim_all, args=(n, start, results)) for n in range(number)]
for claimer in claimers:
    claimer.start()
print(json.dumps([results.get(timeout=500) for _claimer in claimers]))
for claimer in claimers:
    claimer.join()
sys.exit(max(claimer.exitcode for claimer in claimers))
"""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("claimers", "count"), [(6, 100), pytest.param(32, 1000, marks=pytest.mark.proof)])
def test_each_job_is_claimed_once(project: Project, claimers: int, count: int) -> None:
    with transaction.atomic():
        jobs = [Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None).pk for _job in range(count)]
    race = subprocess.run(
        [sys.executable, "-c", RACE, str(claimers)],
        env=shared_environment(),
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert race.returncode == 0, race.stderr[-3000:]
    claimed = [pk for pks in json.loads(race.stdout) for pk in pks]
    assert sorted(claimed) == jobs
    claims = JobEvent.objects.filter(event="claim", job__in=jobs)
    assert claims.count() == claims.values("job").distinct().count() == count
    assert set(Job.objects.values_list("state", "attempt")) == {(State.STARTING, 1)}
