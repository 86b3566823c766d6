"""Studies and the compute budget of the project."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, ComputeBudget, Dataset, Project, Study, User
from dashboard.models.jobs.compute_use import HOUR
from tests.dashboard.studies.factories import make_study
from tests.dashboard.studies.plan.test_study_create import URL, entered


def test_plan_shows_the_compute_budget(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    ComputeBudget.objects.change(project, 40, None)
    client.force_login(ed)
    page = client.get(reverse("study-plan"), entered(dataset, base_model)).content.decode()
    assert "0 h of 40 h used this month" in page
    assert "predicted: " in page.split("0 h of 40 h used this month")[0].rpartition("<dt>")[2]
    assert "cannot start" not in page
    ComputeBudget.objects.change(project, 0, None)
    page = client.get(reverse("study-plan"), entered(dataset, base_model)).content.decode()
    assert "cannot start" in page


def test_plan_and_study_charge_the_same(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    planned = (
        client.get(reverse("study-plan"), entered(dataset, base_model)).context["study_plan"].costs.charge
    )
    client.post(URL, entered(dataset, base_model))
    assert abs(Study.objects.get().whole_forecast - planned.seconds) < 0.01 * planned.seconds


def test_study_over_budget_is_refused(
    client: Client, ed: User, mara: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    ComputeBudget.objects.change(project, 0, mara)
    client.force_login(ed)
    answer = client.post(URL, entered(dataset, base_model))
    assert answer.status_code == 422
    assert not Study.objects.exists()


def test_added_seeds_over_budget_are_refused(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1])
    ComputeBudget.objects.change(project, 1.5 * study.whole_forecast / HOUR, None)
    client.force_login(ed)
    answer = client.post(reverse("study-seeds", args=[study.pk]), {"count": 1, "first": 2}, follow=True)
    assert "are left. Support may use" in answer.content.decode()
    assert Study.objects.get().seeds == [1]
