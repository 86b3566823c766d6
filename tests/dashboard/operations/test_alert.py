"""Alerts at the top of pages, and who sees them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from dashboard.models import User, WorkerNode
from dashboard.models.jobs.job_state import db_now
from dashboard.models.operations.alert import current_alerts

AGO = timedelta(minutes=10)


@pytest.fixture(autouse=True)
def nodes(db: None) -> None:
    """Create a leading dispatcher and a worker."""
    WorkerNode.objects.register(
        "dispatch@box", kind="dispatcher", host="box", pid=1, free_bytes=50 * 1024**3, clock_ahead=0.1
    )
    assert WorkerNode.objects.acquire_lead("dispatch@box")
    WorkerNode.objects.register("gpu0@box", queue="gpu", host="box", pid=2, clock_ahead=0.1)


def change(name: str = "dispatch@box", **fields: object) -> None:
    WorkerNode.objects.filter(name=name).update(**fields)


def codes(*, administrator: bool = True) -> list[str]:
    return [alert.code for alert in current_alerts(administrator=administrator)]


def test_healthy_or_empty_installation_has_no_alert() -> None:
    assert codes() == []
    WorkerNode.objects.all().delete()
    assert codes() == []


def test_silent_broker_alerts_everyone() -> None:
    change(broker_silent_since=db_now(-timedelta(seconds=2)))
    assert codes() == [], "a broker that is restarted is back by then"
    change(broker_silent_since=db_now(-AGO))
    assert codes(administrator=False) == ["queue"]
    change(broker_silent_since=None)
    assert codes(administrator=False) == []


@pytest.mark.parametrize("gone", [{"heartbeat_at": db_now(-AGO)}, {"stopped_at": db_now()}])
def test_missing_dispatcher_alerts_everyone(gone: dict[str, object]) -> None:
    change(**gone)
    assert codes(administrator=False) == ["queue"]


def test_one_of_two_dispatchers_is_enough() -> None:
    WorkerNode.objects.register("dispatch@other", kind="dispatcher", host="other", pid=1)
    change("dispatch@other", heartbeat_at=db_now(-AGO), broker_silent_since=db_now(-AGO))
    assert codes() == []


def test_nearly_full_disk_alerts_administrators() -> None:
    change(free_bytes=2 * 1024**3 - 1)
    assert codes(administrator=False) == []
    (alert,) = current_alerts(administrator=True)
    assert (alert.code, alert.route) == ("disk", "storage-index")
    assert "2.1 GB" in alert.text


@pytest.mark.parametrize("seconds", [6.0, -6.0])
def test_wrong_clock_alerts_administrators(seconds: float) -> None:
    change("gpu0@box", clock_ahead=seconds)
    assert codes(administrator=False) == []
    assert codes() == ["clocks"]
    assert "gpu0@box" in current_alerts(administrator=True)[0].text


def test_alerts_take_one_query(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    for number in range(20):
        WorkerNode.objects.register(f"gpu{number}@far", queue="gpu", host="far", pid=number, clock_ahead=60)
    with django_assert_num_queries(1):
        current_alerts(administrator=True)


@pytest.mark.parametrize(("person", "has_link"), [("vera", False), ("mara", True)])
def test_every_page_shows_alerts(
    client: Client, request: pytest.FixtureRequest, person: str, has_link: bool
) -> None:
    change(broker_silent_since=db_now(-AGO))
    assert not settings.BROKER_SOCKET.exists(), "pages do not contact the broker"
    client.force_login(request.getfixturevalue(person))
    for route in ("home", "training-run-index", "settings"):
        page = client.get(reverse(route)).content.decode()
        assert 'data-alert="queue"' in page
        assert (f'<a href="{reverse("health-index")}">Details</a>' in page) == has_link


def test_live_regions_and_sign_in_show_no_alert(client: Client, vera: User) -> None:
    change(broker_silent_since=db_now(-AGO))
    assert "data-alert" not in client.get(reverse("account_login")).content.decode()
    client.force_login(vera)
    assert "data-alert" not in client.get(reverse("home-progress")).content.decode()
