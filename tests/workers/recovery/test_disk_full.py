"""A full disk while publishing: the run fails, keeps its checkpoint and is resumed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client

from dashboard.models import Adapter, BaseModel, Dataset, Evaluation, Job, Project, State, TrainingRun, User
from tests.conftest import make_run
from tests.moments import raising
from tests.workers.recovery.test_resume import begins, checkpoints_of
from workers.supervision import publish
from workers.supervision.publish import check_adapter

STEPS = 60


@pytest.mark.django_db(transaction=True)
def test_run_is_resumed_after_a_full_disk(
    real_base: BaseModel,
    real_dataset: Dataset,
    project: Project,
    ed: User,
    vera: User,
    client: Client,
    work_off: Callable[[str], Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(project, real_dataset, real_base, by=ed, max_steps=STEPS)
    with monkeypatch.context() as full:
        full.setattr(publish, "RETRY_SECONDS", 0.0)
        full.setattr(publish, "publish_folder", raising(publish.publish_folder, "ENOSPC"))
        job = work_off("gpu")
    run = TrainingRun.objects.get()
    assert (job.state, run.state, run.error and run.error["code"]) == (State.FAILED, "failed", "disk_full")
    assert not Adapter.objects.exists()
    assert checkpoints_of(job)
    kept = run.resumable_from
    assert kept

    client.force_login(vera)
    page = client.get(run.get_absolute_url()).content.decode()
    assert "The disk is full, so the result could not be written." in page
    assert f"The checkpoint of step {kept} of {STEPS} is kept for 14 days, until" in page

    run.resume(ed)
    again = work_off("gpu")
    run.refresh_from_db()
    assert (again.pk, again.state, again.attempt) == (job.pk, State.SUCCEEDED, 2)
    assert (run.state, run.step, run.error) == ("succeeded", STEPS, None)
    assert begins(again) == [kept]
    adapter = Adapter.objects.get()
    check_adapter(adapter.path(), adapter.files)
    assert Evaluation.objects.count() == 2
    assert not checkpoints_of(again)
