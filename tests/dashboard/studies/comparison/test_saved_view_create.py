"""Saved views of lists and comparisons: saved and deleted by editors, opened by every member."""

from __future__ import annotations

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse

from dashboard.models import Project, SavedView, TrainingRun, User


def save(client: Client, user: User, **values: str) -> HttpResponse:
    client.force_login(user)
    answer = client.post(reverse("saved-view-create"), {"page": "compare", **values}, follow=True)
    assert isinstance(answer, HttpResponse)
    return answer


def test_editor_saves_the_query(client: Client, ed: User, vera: User, run: TrainingRun) -> None:
    query = f"runs={run.pk}&show=differences&reference={run.pk}"
    assert "Saved as “Monday”." in save(client, ed, name="Monday", query=query).content.decode()
    client.force_login(vera)
    text = client.get(reverse("compare")).content.decode()
    assert f'href="/compare/?runs={run.pk}&amp;reference={run.pk}&amp;show=differences">Monday</a>' in text
    assert "Delete Monday" not in text


def test_a_list_is_saved_with_its_filters_order_and_columns(
    client: Client, ed: User, run: TrainingRun
) -> None:
    query = "state=active&sort=-exact_match&columns=loss&columns=r&sort_by=x&dataset=99"
    save(client, ed, page="training-run-index", name="Best", query=query)
    view = SavedView.objects.get()
    assert view.get_absolute_url() == "/runs/?state=active&sort=-exact_match&columns=loss&columns=r"
    assert (
        f'href="{view.get_absolute_url().replace("&", "&amp;")}">Best</a>'
        in client.get("/runs/").content.decode()
    )
    assert "Best" not in client.get("/compare/").content.decode()
    save(client, ed, page="adapter-index", name="Best", query="")
    assert SavedView.objects.count() == 2
    save(client, ed, page="home", name="Nowhere", query="")
    assert SavedView.objects.count() == 2


def test_unknown_parameters_are_dropped(client: Client, ed: User, run: TrainingRun) -> None:
    save(client, ed, name="Monday", query=f"runs={run.pk}&next=https://example.org/")
    assert SavedView.objects.get().query == f"runs={run.pk}"


def test_existing_name_is_not_overwritten(client: Client, ed: User, run: TrainingRun) -> None:
    save(client, ed, name="Monday", query=f"runs={run.pk}")
    text = save(client, ed, name="Monday", query="show=differences").content.decode()
    assert "There is a saved view called “Monday” already." in text
    assert SavedView.objects.get().query == f"runs={run.pk}"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "", "query": "runs=1"}, "Give the view a name."),
        ({"name": "x" * 81, "query": ""}, "at most 80 characters"),
        ({"name": "Monday", "query": ""}, "Choose runs first, then save the comparison."),
    ],
)
def test_invalid_fields_are_refused(
    client: Client, ed: User, run: TrainingRun, values: dict[str, str], words: str
) -> None:
    values = {**values, "query": values["query"].replace("1", str(run.pk))}
    assert words in save(client, ed, **values).content.decode()
    assert not SavedView.objects.exists()


def test_delete_keeps_the_runs(client: Client, ed: User, project: Project, run: TrainingRun) -> None:
    view = SavedView.objects.create(project=project, name="Monday", query=f"runs={run.pk}")
    client.force_login(ed)
    client.post(reverse("saved-view-delete", args=[view.pk]))
    assert not SavedView.objects.exists()
    assert TrainingRun.objects.filter(pk=run.pk).exists()


def test_saved_view_of_another_project_is_hidden(client: Client, otto: User, project: Project) -> None:
    SavedView.objects.create(project=project, name="Monday", query="runs=1")
    client.force_login(otto)
    assert "Monday" not in client.get(reverse("compare")).content.decode()
