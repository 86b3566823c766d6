"""Settings, Compute budget: usage for all members, the limit for managers."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import DjangoAssertNumQueries

from dashboard.models import BaseModel, ComputeBudget, Dataset, Project, TrainingRun, User
from dashboard.models.jobs.compute_use import Month
from tests.conftest import finish, make_run
from tests.dashboard.durations import expect, held

URL = reverse("compute-budget-index")
CHANGE = reverse("compute-budget-change")


def page_of(client: Client, user: User) -> str:
    client.force_login(user)
    return " ".join(client.get(URL).content.decode().split())


def change(client: Client, user: User, hours: str) -> int:
    client.force_login(user)
    return client.post(CHANGE, {"hours": hours}).status_code


def test_settings_link_to_the_page(client: Client, vera: User) -> None:
    client.force_login(vera)
    assert f'href="{URL}"' in client.get(reverse("settings")).content.decode()


def test_texts(
    client: Client, vera: User, project: Project, run: TrainingRun, dataset: Dataset, base_model: BaseModel
) -> None:
    assert "0 h used. There is no limit." in page_of(client, vera)
    held(finish(run.job), Month.current().begin, 3 * 3600)
    run.end("succeeded", step=10)
    expect(make_run(project, dataset, base_model), 2 * 3600)
    ComputeBudget.objects.change(project, 20, None)
    page = page_of(client, vera)
    for text in (
        "15 h of 20 h are left.",
        "3 h used",
        "2 h reserved for waiting and running jobs",
        '<td>ed@example.org</td> <td class="num">3 h</td>',
        "Managers of this project set the budget.",
    ):
        assert text in page
    assert "Save the budget" not in page
    assert page.count('<th scope="row">') == 12


def test_usage_of_a_deleted_user_is_shown(client: Client, vera: User, ed: User, run: TrainingRun) -> None:
    held(finish(run.job), Month.current().begin, 1800)
    ed.delete()
    assert '</td> <td class="num">0.50 h</td>' in page_of(client, vera)


def test_a_manager_sets_and_removes_the_limit(client: Client, mara: User, project: Project) -> None:
    for typed, hours in (("20", 20), ("7.5", 7.5), ("", None)):
        assert change(client, mara, typed) == 302
        assert ComputeBudget.objects.hours_of(project) == hours
        page = page_of(client, mara)
        assert f'value="{typed}"' in page if typed else "No limit" in page
    assert "set by mara@example.org" in page


@pytest.mark.parametrize("hours", ["-1", "much", "1e9", "nan"])
def test_an_invalid_limit_is_refused(client: Client, mara: User, project: Project, hours: str) -> None:
    assert change(client, mara, hours) == 422
    assert ComputeBudget.objects.hours_of(project) is None


def test_a_manager_sets_only_the_limit_of_their_project(
    client: Client, otto: User, project: Project, other_project: Project
) -> None:
    assert change(client, otto, "3") == 302
    assert ComputeBudget.objects.hours_of(other_project) == 3
    assert ComputeBudget.objects.hours_of(project) is None


def test_queries_do_not_grow_with_the_runs(
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
            held(finish(run.job), Month.current().begin, 60)
    client.force_login(vera)
    # The first request stores the days that are over.
    client.get(URL)
    with django_assert_max_num_queries(21):
        client.get(URL)
