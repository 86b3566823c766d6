"""The form of a study whose hours are limited: what can be told apart in that time."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, Study, User
from tests.dashboard.studies.plan.test_study_create import PLAN, entered
from tests.dashboard.studies.plan.test_study_power import with_test_rows

SECOND = 1 / 3600


@pytest.fixture
def form(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> dict[str, Any]:
    """Five seeds on 200 test rows, by someone who is signed in."""
    version = dataset.newest_ready()
    assert version
    with_test_rows(version, 200)
    client.force_login(ed)
    return entered(dataset, base_model, seeds="5")


def test_form_forecasts_the_first_look(client: Client, form: dict[str, Any]) -> None:
    costs = client.get(PLAN, form).context["study_plan"].costs
    assert 0 < costs.first_look.seconds["expected"] < costs.plan.seconds["expected"]
    costs = client.get(PLAN, form | {"seeds": "3"}).context["study_plan"].costs
    assert costs.first_look is None, "the first look is the end"


def test_form_says_what_can_be_told_apart_in_the_time(client: Client, form: dict[str, Any]) -> None:
    whole = client.get(PLAN, form).context["study_plan"].costs.plan.seconds["expected"]
    answer = client.get(PLAN, form | {"max_hours": str(0.7 * whole * SECOND)})
    plan = answer.context["study_plan"]
    assert 3 <= plan.costs.seeds_within < 5
    assert plan.power.within.difference > plan.power.now.difference
    page = " ".join(answer.content.decode().split())
    assert f"about {plan.costs.seeds_within} of 5 seeds are trained." in page
    assert f"differ by {plan.power.within.difference_words}, with 80 % probability." in page
    assert plan.costs.charge.seconds == pytest.approx(0.7 * whole)


def test_launch_freezes_the_hours(client: Client, form: dict[str, Any]) -> None:
    client.post(reverse("study-create"), form | {"max_hours": "1.5"})
    assert Study.objects.get().max_hours == 1.5


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "1e9", "soon"])
def test_impossible_hours_are_refused(client: Client, form: dict[str, Any], hours: str) -> None:
    answer = client.post(reverse("study-create"), form | {"max_hours": hours})
    assert answer.status_code == 422
    assert "max_hours" in answer.context["form"].errors
    assert not Study.objects.exists()


def test_api_refuses_impossible_hours(
    api: Client, dataset: Dataset, base_model: BaseModel, form: dict[str, Any]
) -> None:
    arms = [{"target_module_config": name} for name in ("efficient", "quality")]
    plan = {"dataset": dataset.pk, "base_model": base_model.pk, "arms": arms}
    answer = api.post("/api/v1/studies", plan | {"max_hours": 0}, content_type="application/json")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "max_hours")
    answer = api.post("/api/v1/studies", plan | {"max_hours": 2}, content_type="application/json")
    assert answer.json()["max_hours"] == 2.0
