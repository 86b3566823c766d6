"""Memory that trainings are still to take, which an inference job leaves to them."""

from __future__ import annotations

import os

import psutil

from dashboard.models import Job, TrainingRun, WorkerNode
from tests.workers.conftest import claim
from workers.supervision.engine_process import private_values
from workers.supervision.process_identity import birth
from workers.supervision.promised_memory import promised_bytes


def test_a_training_keeps_what_its_forecast_says(run: TrainingRun) -> None:
    assert promised_bytes() == 0, "it waits"
    run.forecast = {"peak_memory_bytes": {"expected": 10**12}}
    run.save()
    claim("gpu")
    assert promised_bytes() == 0, "it may be on a card"
    WorkerNode.objects.register("gpu@test", queue="gpu", host="test", pid=1, device="CPU, 4 cores")
    assert promised_bytes() == 10**12
    Job.objects.update(child_pid=os.getpid(), child_started=birth(os.getpid()))
    held = psutil.Process().memory_info().rss
    promised = private_values(run.base_model.serve())["promised"]
    assert abs(10**12 - held - int(promised)) < 10**8
    TrainingRun.objects.update(outcome="succeeded")
    assert promised_bytes() == 0
