"""Six people open one invitation at once: one joins, and the others hear at once that it is used."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.hashers import Argon2PasswordHasher
from django.db import connections
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

import dashboard.asgi  # noqa: F401 - shortens the wait for SQLite's lock, as in the web process
from dashboard.models import Invitation, Membership, Project, Role, User
from tests.conftest import PASSWORD

PEOPLE = 6


class SlowHasher(Argon2PasswordHasher):
    """Takes as long as on a busy machine, without the load."""

    def encode(self, *arguments: Any) -> str:
        time.sleep(1.2)
        return super().encode(*arguments)


@pytest.mark.jobs
@pytest.mark.django_db(transaction=True)
def test_one_of_six_joins(project: Project, mara: User, settings: Settings, measured: Any) -> None:
    settings.PASSWORD_HASHERS = [f"{__name__}.{SlowHasher.__name__}"]
    secret = Invitation.issue(project, "nia@example.org", Role.EDITOR, mara)[1]
    start = threading.Barrier(PEOPLE)

    def accept(number: int) -> tuple[int, float]:
        client = Client(raise_request_exception=False)
        start.wait()
        begin = time.monotonic()
        try:
            values = {"name": f"Nia {number}", "password": PASSWORD}
            answer = client.post(reverse("invitation-accept", args=[secret]), values)
            return answer.status_code, time.monotonic() - begin
        finally:
            connections.close_all()

    with ThreadPoolExecutor(PEOPLE) as pool:
        answers = sorted(pool.map(accept, range(PEOPLE)))
    longest = max(seconds for _status, seconds in answers)
    measured(f"{PEOPLE} people accept one invitation at once: the last answer after {longest:.1f} s")
    assert [status for status, _seconds in answers] == [302] + [404] * (PEOPLE - 1)
    assert User.objects.filter(email="nia@example.org").count() == 1
    assert Membership.objects.filter(project=project, role=Role.EDITOR).count() == 1
