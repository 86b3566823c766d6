"""Re-evaluation with a real engine after its files were missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.test import Client

from dashboard.models import Adapter, BaseModel, Dataset, Job, Project, State, TrainingRun, User
from dashboard.models.studies.re_evaluation import reevaluate
from tests.conftest import make_run


@pytest.mark.django_db(transaction=True)
def test_adapter_is_reevaluated_after_its_files_are_restored(
    real_base: BaseModel,
    real_dataset: Dataset,
    project: Project,
    ed: User,
    client: Client,
    work_off: Callable[[str], Job],
) -> None:
    make_run(project, real_dataset, real_base, by=ed, max_steps=5)
    assert work_off("gpu").state == State.SUCCEEDED
    folder = Adapter.objects.get().path()
    away = folder.rename(folder.with_name("away"))
    failed = work_off("gpu")
    assert (failed.kind, failed.state, failed.error_code) == ("evaluate", State.FAILED, "bad_adapter")
    away.rename(folder)

    client.force_login(ed)
    run = TrainingRun.objects.get()
    assert 'id="unscored"' in client.get(run.get_absolute_url()).content.decode()
    reevaluate(run, ed)
    again = work_off("gpu")
    assert (again.state, again.spec) == (State.SUCCEEDED, failed.spec)
    scores = TrainingRun.objects.get().scores()
    assert scores.keys() == {"base", "adapter"}
    assert 'id="unscored"' not in client.get(run.get_absolute_url()).content.decode()
