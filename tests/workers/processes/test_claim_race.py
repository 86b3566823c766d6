"""Many processes claim from one queue at once: each job goes to exactly one of them.

`CHAOS_CLAIMERS` and `CHAOS_CLAIMED` set how many processes race for how many jobs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from django.conf import settings
from django.db import transaction

from dashboard.models import Job, JobEvent, Project, State
from tests.conftest import shared_environment

CLAIMERS = int(os.environ.get("CHAOS_CLAIMERS", "8"))
JOBS = int(os.environ.get("CHAOS_CLAIMED", "200"))
# Forked before the first connection: each process has its own, and none has to import Django again.
RACE = """
import json, multiprocessing, os, sys
import django
django.setup()
from dashboard.models import Job

def claim_until_none_waits(number, begin, found):
    begin.wait()
    mine = []
    while Job.objects.waiting("cpu").exists():
        job = Job.objects.claim(
            "cpu", worker=f"cpu{number}", slot=None, host="host", pid=os.getpid(), pid_started=1.0)
        if job:
            mine.append(job.pk)
    found.put(mine)

fork = multiprocessing.get_context("fork")
claimers = int(sys.argv[1])
begin, found = fork.Barrier(claimers), fork.Queue()
racers = [fork.Process(target=claim_until_none_waits, args=(n, begin, found)) for n in range(claimers)]
for racer in racers:
    racer.start()
print(json.dumps([found.get(timeout=500) for _racer in racers]))
for racer in racers:
    racer.join()
sys.exit(max(racer.exitcode for racer in racers))
"""


@pytest.mark.django_db(transaction=True)
def test_each_job_is_claimed_by_exactly_one_of_many(project: Project) -> None:
    with transaction.atomic():
        jobs = [Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None).pk for _job in range(JOBS)]
    raced = subprocess.run(
        [sys.executable, "-c", RACE, str(CLAIMERS)],
        env=shared_environment(),
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert raced.returncode == 0, raced.stderr[-3000:]
    claimed = [pk for mine in json.loads(raced.stdout) for pk in mine]
    assert sorted(claimed) == jobs
    claims = JobEvent.objects.filter(event="claim", job__in=jobs)
    assert claims.count() == claims.values("job").distinct().count() == JOBS
    assert set(Job.objects.values_list("state", "attempt")) == {(State.STARTING, 1)}
