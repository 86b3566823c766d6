"""What the frame around every page says while something is wrong, and to whom."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from dashboard.models import User, WorkerNode
from dashboard.models.alarm import alarms
from dashboard.models.job_state import db_now

AGO = timedelta(minutes=10)
UNAVAILABLE = "The queue is unavailable at the moment. Your jobs are safe: they wait and start by themselves."


@pytest.fixture(autouse=True)
def sound(db: None) -> None:
    """A dispatcher that leads, and a worker."""
    WorkerNode.objects.register(
        "dispatch@box", kind="dispatcher", host="box", pid=1, free_bytes=50 * 1024**3, clock_ahead=0.1
    )
    assert WorkerNode.objects.acquire_lead("dispatch@box")
    WorkerNode.objects.register("gpu0@box", queue="gpu", host="box", pid=2, clock_ahead=0.1)


def change(name: str = "dispatch@box", **fields: object) -> None:
    """Let a node be otherwise."""
    WorkerNode.objects.filter(name=name).update(**fields)


def checks(*, keeper: bool = True) -> list[str]:
    """What is said now."""
    return [alarm.check for alarm in alarms(keeper=keeper)]


def test_nothing_is_said_while_all_is_well() -> None:
    assert checks() == []


def test_nothing_is_said_before_the_first_dispatcher_has_come() -> None:
    WorkerNode.objects.all().delete()
    assert checks() == []


def test_a_silent_broker_is_said_to_everybody() -> None:
    change(broker_silent_since=db_now(-timedelta(seconds=2)))
    assert checks() == [], "one that is started again is back by then"
    change(broker_silent_since=db_now(-AGO))
    assert checks(keeper=False) == ["queue"]
    change(broker_silent_since=None)
    assert checks(keeper=False) == []


@pytest.mark.parametrize("gone", [{"heartbeat_at": db_now(-AGO)}, {"stopped_at": db_now()}])
def test_without_any_dispatcher_the_queue_is_unavailable(gone: dict[str, object]) -> None:
    change(**gone)
    assert checks(keeper=False) == ["queue"]


def test_one_of_two_dispatchers_is_enough() -> None:
    WorkerNode.objects.register("dispatch@other", kind="dispatcher", host="other", pid=1)
    change("dispatch@other", heartbeat_at=db_now(-AGO), broker_silent_since=db_now(-AGO))
    assert checks() == []


def test_a_disk_that_is_nearly_full_is_said_to_keepers() -> None:
    change(free_bytes=2 * 1024**3 - 1)
    assert checks(keeper=False) == []
    (alarm,) = alarms(keeper=True)
    assert alarm.text.startswith("The disk is nearly full: 2.1 GB are free.")
    assert alarm.route == "storage-index"


@pytest.mark.parametrize("seconds", [6.0, -6.0])
def test_a_wrong_clock_is_said_to_keepers(seconds: float) -> None:
    change("gpu0@box", clock_ahead=seconds)
    assert checks(keeper=False) == []
    assert checks() == ["clocks"]
    assert "gpu0@box" in alarms(keeper=True)[0].text


def test_it_takes_one_query(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    for number in range(20):
        WorkerNode.objects.register(f"gpu{number}@far", queue="gpu", host="far", pid=number, clock_ahead=60)
    with django_assert_num_queries(1):
        alarms(keeper=True)


@pytest.mark.parametrize(("person", "leads"), [("vera", False), ("mara", True)])
def test_every_page_says_it(client: Client, request: pytest.FixtureRequest, person: str, leads: bool) -> None:
    change(broker_silent_since=db_now(-AGO))
    assert not settings.BROKER_SOCKET.exists(), "and none of them asks the broker"
    client.force_login(request.getfixturevalue(person))
    for route in ("home", "training-run-index", "settings"):
        page = client.get(reverse(route)).content.decode()
        assert UNAVAILABLE in page
        assert (f'<a href="{reverse("health-index")}">What is wrong</a>' in page) == leads


def test_live_regions_do_not_repeat_it(client: Client, vera: User) -> None:
    change(broker_silent_since=db_now(-AGO))
    client.force_login(vera)
    assert UNAVAILABLE not in client.get(reverse("home-progress")).content.decode()


def test_a_stranger_is_told_nothing(client: Client, vera: User) -> None:
    change(broker_silent_since=db_now(-AGO))
    assert UNAVAILABLE not in client.get(reverse("account_login")).content.decode()
