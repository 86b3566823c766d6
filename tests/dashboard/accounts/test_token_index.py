"""The list of API tokens: one's own, and for managers everybody's."""

from __future__ import annotations

from django.test import Client

from dashboard.models import ApiToken, Project, User

URL = "/settings/tokens/"


def test_the_owner_sees_their_token_without_its_secret(client: Client, ed: User, project: Project) -> None:
    token, secret = ApiToken.issue(project, ed, "nightly upload")
    client.force_login(ed)
    text = client.get(URL).content.decode()
    assert "nightly upload" in text
    assert token.prefix in text
    assert secret not in text


def test_an_editor_does_not_see_others_tokens(client: Client, ed: User, mara: User, project: Project) -> None:
    ApiToken.issue(project, mara, "board report")
    client.force_login(ed)
    assert b"board report" not in client.get(URL).content


def test_a_manager_sees_all_of_the_project(client: Client, ed: User, mara: User, project: Project) -> None:
    ApiToken.issue(project, ed, "nightly upload")
    client.force_login(mara)
    assert b"nightly upload" in client.get(URL).content


def test_tokens_of_another_project_stay_hidden(
    client: Client, mara: User, otto: User, other_project: Project
) -> None:
    ApiToken.issue(other_project, otto, "elsewhere token")
    client.force_login(mara)
    assert b"elsewhere token" not in client.get(URL).content


def test_it_says_when_there_is_none(client: Client, vera: User) -> None:
    client.force_login(vera)
    assert b"No tokens yet" in client.get(URL).content
