"""Projects: creation by superusers, and switching between one's projects."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Membership, Project, Role, User

NEW, OPEN = "/projects/new/", "/projects/open/"


@pytest.fixture
def root(mara: User) -> User:
    """Mara as a superuser."""
    User.objects.filter(pk=mara.pk).update(is_superuser=True, is_staff=True)
    return User.objects.get(pk=mara.pk)


def test_creator_manages_and_opens_new_project(client: Client, root: User) -> None:
    client.force_login(root)
    answer = client.post(NEW, {"name": " Search "}, follow=True)
    project = Project.objects.get(name="Search")
    assert Membership.objects.get(project=project).role == Role.MANAGER
    assert client.session["project"] == project.pk
    assert b"Search" in answer.content


@pytest.mark.parametrize("name", ["   ", "x" * 101, "SUPPORT"])
def test_empty_long_or_taken_name_is_refused(client: Client, root: User, name: str) -> None:
    client.force_login(root)
    assert client.post(NEW, {"name": name}).status_code == 422
    assert Project.objects.count() == 1


def test_team_page_offers_no_new_project_to_managers(client: Client, mara: User) -> None:
    client.force_login(mara)
    assert reverse("project-create").encode() not in client.get(reverse("team-index")).content


def test_opened_project_stays_open(client: Client, mara: User, other_project: Project) -> None:
    other_project.admit(mara, Role.VIEWER)
    client.force_login(mara)
    assert client.post(OPEN, {"project": other_project.pk}).headers["Location"] == reverse("home")
    page = client.get(reverse("team-index")).content.decode()
    assert re.search(r'page-pretitle">\s*Elsewhere\s*<', page)


def test_invalid_project_is_not_found(client: Client, mara: User) -> None:
    client.force_login(mara)
    assert client.post(OPEN, {"project": "x"}).status_code == 404
    assert "project" not in client.session
