"""Settings, Compute budget: how the month stands for everybody, and the limit for managers."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import DjangoAssertNumQueries

from dashboard.models import BaseModel, ComputeBudget, Dataset, Project, TrainingRun, User
from dashboard.models.jobs.compute_use import Month
from tests.conftest import finish, make_run
from tests.dashboard.computing import expect, held

URL = reverse("compute-budget-index")
CHANGE = reverse("compute-budget-change")


def page_of(client: Client, user: User) -> str:
    client.force_login(user)
    return " ".join(client.get(URL).content.decode().split())


def change(client: Client, user: User, hours: str) -> int:
    client.force_login(user)
    return client.post(CHANGE, {"hours": hours}).status_code


def test_the_settings_lead_to_it(client: Client, vera: User) -> None:
    client.force_login(vera)
    assert f'href="{URL}"' in client.get(reverse("settings")).content.decode()


def test_without_a_limit_it_says_so(client: Client, vera: User) -> None:
    assert "0 h used. There is no limit." in page_of(client, vera)


def test_it_says_what_is_left_used_and_promised(
    client: Client, vera: User, project: Project, run: TrainingRun, dataset: Dataset, base_model: BaseModel
) -> None:
    assert run.job is not None
    held(finish(run.job), Month.present().begin, 3 * 3600)
    run.end("succeeded", step=10)
    expect(make_run(project, dataset, base_model), 2 * 3600)
    ComputeBudget.objects.change(project, 20, None)
    page = page_of(client, vera)
    assert "15 h of 20 h are left." in page
    assert "3 h used" in page
    assert "2 h promised to work that waits or runs" in page


def test_it_names_who_used_it(client: Client, vera: User, ed: User, run: TrainingRun) -> None:
    assert run.job is not None
    held(finish(run.job), Month.present().begin, 1800)
    page = page_of(client, vera)
    assert '<td>ed@example.org</td> <td class="num">0.50 h</td>' in page
    ed.delete()
    assert "People who have left" in page_of(client, vera)


def test_it_shows_twelve_months(client: Client, vera: User) -> None:
    assert page_of(client, vera).count('<th scope="row">') == 12


def test_a_viewer_cannot_set_it(client: Client, vera: User, ed: User, project: Project) -> None:
    assert "Save the budget" not in page_of(client, vera)
    assert "Managers of this project set the budget." in page_of(client, vera)
    assert [change(client, user, "5") for user in (vera, ed)] == [403, 403]
    assert ComputeBudget.objects.hours_of(project) is None


def test_a_manager_sets_it_and_everybody_sees_who_did(
    client: Client, mara: User, vera: User, project: Project
) -> None:
    assert change(client, mara, "7.5") == 302
    assert ComputeBudget.objects.hours_of(project) == 7.5
    page = page_of(client, vera)
    assert "7.5 h of 7.5 h are left." in page
    assert "set by mara@example.org" in page


def test_the_form_holds_the_present_limit_as_people_write_it(client: Client, mara: User) -> None:
    for typed in ("20", "7.5"):
        change(client, mara, typed)
        assert f'value="{typed}"' in page_of(client, mara)


def test_a_manager_takes_the_limit_away(client: Client, mara: User, project: Project) -> None:
    change(client, mara, "5")
    assert change(client, mara, "") == 302
    assert ComputeBudget.objects.hours_of(project) is None
    assert "No limit" in page_of(client, mara)


@pytest.mark.parametrize("hours", ["-1", "much", "1e9", "nan", "inf", "5;"])
def test_it_says_what_it_takes(client: Client, mara: User, project: Project, hours: str) -> None:
    client.force_login(mara)
    answer = client.post(CHANGE, {"hours": hours})
    assert answer.status_code == 422
    assert "Enter a number of hours from 0 to 1,000,000" in answer.content.decode()
    assert ComputeBudget.objects.hours_of(project) is None


def test_a_manager_of_another_project_sets_only_their_own(
    client: Client, otto: User, project: Project, other_project: Project
) -> None:
    assert change(client, otto, "3") == 302
    assert ComputeBudget.objects.hours_of(other_project) == 3
    assert ComputeBudget.objects.hours_of(project) is None


def test_more_runs_cost_no_more_queries(
    client: Client,
    vera: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    for number in range(6):
        run = make_run(project, dataset, base_model, name=f"Run {number}")
        if number % 2 and run.job:
            held(finish(run.job), Month.present().begin, 60)
    client.force_login(vera)
    with django_assert_max_num_queries(18):
        client.get(URL)
