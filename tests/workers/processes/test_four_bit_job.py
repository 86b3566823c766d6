"""A run on a base model in 4 bits from launch to scores, by a real engine on the CPU's implementation."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from django.test import Client

from dashboard.models import (
    BaseModel,
    Calibration,
    Dataset,
    Job,
    Project,
    User,
    WorkerNode,
)
from tests.conftest import make_run

WorkOff = Callable[[str], Job]


@pytest.mark.proof
@pytest.mark.usefixtures("unforked_engines")
def test_run_on_a_4_bit_base_is_trained_and_evaluated(
    client: Client, project: Project, ed: User, real_base: BaseModel, real_dataset: Dataset, work_off: WorkOff
) -> None:
    WorkerNode.objects.register("gpu@test", queue="gpu", host="box", pid=1, device="cpu", loads_4bit=True)
    both = [
        make_run(
            project, real_dataset, real_base, by=ed, max_steps=4, learning_rate=1e-2, load_in_4bit=packed
        )
        for packed in (True, False)
    ]
    jobs = [work_off("gpu") for _time in range(4)]
    assert [job.state for job in jobs] == ["succeeded"] * 4, [job.error for job in jobs]
    for run in both:
        run.refresh_from_db()
    packed, whole = both
    scores = packed.scores()
    assert scores["base"]["loss"] != pytest.approx(whole.scores()["base"]["loss"], rel=1e-4)
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    record = json.loads((packed.adapter.path() / "run.json").read_text())
    assert record["spec"]["hyperparameters"]["load_in_4bit"] is True
    client.force_login(ed)
    assert b"trained and evaluated on it in 4 bits" in client.get(packed.adapter.get_absolute_url()).content
    estimates = {calibration.run_id: calibration for calibration in Calibration.objects.all()}
    assert estimates[packed.pk].estimated_memory_bytes < estimates[whole.pk].estimated_memory_bytes
