"""New projects are founded by superusers."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Membership, Project, Role, User

URL = "/projects/new/"


@pytest.fixture
def root(mara: User) -> User:
    """Mara, who also administers the installation."""
    User.objects.filter(pk=mara.pk).update(is_superuser=True, is_staff=True)
    return User.objects.get(pk=mara.pk)


def test_it_makes_the_founder_manager_and_opens_the_project(client: Client, root: User) -> None:
    client.force_login(root)
    answer = client.post(URL, {"name": " Search "}, follow=True)
    project = Project.objects.get(name="Search")
    assert Membership.objects.get(project=project).role == Role.MANAGER
    assert client.session["project"] == project.pk
    assert b"Search" in answer.content


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "support", "SUPPORT"])
def test_it_refuses_an_empty_long_or_taken_name(client: Client, root: User, name: str) -> None:
    client.force_login(root)
    assert client.post(URL, {"name": name}).status_code == 422
    assert Project.objects.count() == 1


def test_it_refuses_a_manager_and_says_who_can(client: Client, mara: User) -> None:
    client.force_login(mara)
    answer = client.post(URL, {"name": "Search"})
    assert answer.status_code == 403
    assert b"administrator" in answer.content
    assert reverse("project-create").encode() not in client.get(reverse("team-index")).content
