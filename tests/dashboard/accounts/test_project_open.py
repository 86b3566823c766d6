"""Switching to another of one's own projects."""

from __future__ import annotations

import re

from django.test import Client
from django.urls import reverse

from dashboard.models import Project, Role, User

URL = "/projects/open/"


def test_it_shows_the_other_project_from_now_on(client: Client, mara: User, other_project: Project) -> None:
    other_project.admit(mara, Role.VIEWER)
    client.force_login(mara)
    assert client.post(URL, {"project": other_project.pk}).headers["Location"] == reverse("home")
    page = client.get(reverse("team-index")).content.decode()
    assert re.search(r'page-pretitle">\s*Elsewhere\s*<', page)


def test_it_hides_a_foreign_project(client: Client, mara: User, other_project: Project) -> None:
    client.force_login(mara)
    assert client.post(URL, {"project": other_project.pk}).status_code == 404
    assert "project" not in client.session


def test_nonsense_is_not_found(client: Client, mara: User) -> None:
    client.force_login(mara)
    assert client.post(URL, {"project": "x"}).status_code == 404
    assert client.post(URL).status_code == 404
    assert client.get(URL).status_code == 405
