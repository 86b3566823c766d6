"""Stalled queues: queues without a worker that takes jobs, and the pages that say so."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from dashboard.models import Project, TrainingRun, User, WorkerNode
from dashboard.models.operations.stalled_queue import (
    ALL_QUEUES,
    StalledQueue,
    StallReason,
    merge_stalled,
    stalled_queues,
)
from tests.conftest import make_dataset
from tests.dashboard.studies.factories import make_study

GPU = 'data-stalled-queue="gpu"'


@pytest.fixture(autouse=True)
def workers(db: None) -> None:
    """Create a worker for each queue and a dispatcher."""
    for name in ("gpu0", "cpu", "serve"):
        WorkerNode.objects.register(f"{name}@box", queue=name.rstrip("0"), host="box", pid=1)
    WorkerNode.objects.register("dispatcher@box", kind="dispatcher", host="box", pid=2)


def change(name: str, **fields: object) -> None:
    WorkerNode.objects.filter(name=name).update(**fields)


def stop(*names: str) -> None:
    WorkerNode.objects.filter(name__in=names).update(stopped_at=timezone.now())


def reasons() -> dict[str, str]:
    return {stalled.queue: str(stalled.reason) for stalled in merge_stalled(stalled_queues())}


def page_of(client: Client, user: User, address: str) -> str:
    client.force_login(user)
    return client.get(address).content.decode()


@pytest.mark.parametrize(("name", "queue"), [("gpu0@box", "gpu"), ("cpu@box", "cpu"), ("serve@box", "serve")])
def test_queue_without_worker_is_stalled(name: str, queue: str) -> None:
    assert stalled_queues() == {}
    stop(name)
    assert reasons() == {queue: "missing"}


def test_one_available_worker_is_enough() -> None:
    WorkerNode.objects.register("gpu1@box", queue="gpu", host="box", pid=3)
    change("gpu0@box", paused_at=timezone.now())
    assert stalled_queues() == {}


def test_paused_and_draining_workers_take_no_job() -> None:
    change("gpu0@box", draining=True)
    assert reasons() == {"gpu": "draining"}
    WorkerNode.objects.register("gpu1@box", queue="gpu", host="box", pid=3, paused_at=timezone.now())
    assert reasons() == {"gpu": "paused"}, "that worker can be resumed"


def test_same_reason_for_all_queues_is_one_entry() -> None:
    stop("gpu0@box", "cpu@box", "serve@box")
    assert reasons() == {ALL_QUEUES: "missing"}
    change("gpu0@box", stopped_at=None, paused_at=timezone.now())
    assert reasons() == {"gpu": "paused", "cpu": "missing", "serve": "missing"}


def test_sentences() -> None:
    assert StalledQueue("gpu", StallReason.MISSING).text == (
        "No worker is available for training and evaluation. Waiting jobs are saved and start when a worker "
        "is back."
    )
    assert StalledQueue(ALL_QUEUES, StallReason.PAUSED).text == (
        "No worker accepts any job while workers are paused. Waiting jobs start when one is resumed."
    )


def test_stalled_queues_take_one_query(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    for number in range(1, 20):
        WorkerNode.objects.register(f"gpu{number}@far", queue="gpu", host="far", pid=number)
    with django_assert_num_queries(1):
        stalled_queues()


@pytest.mark.parametrize(
    ("route", "queue"),
    [
        ("training-run-progress", "gpu"),
        ("study-grid", "gpu"),
        ("queue-board", "gpu"),
        ("dataset-detail", "cpu"),
        ("dataset-progress", "cpu"),
        ("base-model-detail", "cpu"),
        ("base-model-progress", "cpu"),
    ],
)
def test_pages_of_waiting_jobs_show_stalled_queue(
    client: Client, vera: User, project: Project, run: TrainingRun, route: str, queue: str
) -> None:
    run.base_model.inspect()
    objects = {
        "training-run": run.pk,
        "study": make_study(project, run.dataset_version.dataset, run.base_model).pk,
        "dataset": make_dataset(project, "New", ready=False).pk,
        "base-model": run.base_model.pk,
    }
    arguments = [pk for name, pk in objects.items() if route.startswith(name)]
    address = reverse(route, args=arguments)
    marker = f'data-stalled-queue="{queue}"'
    assert marker not in page_of(client, vera, address)
    stop("gpu0@box" if queue == "gpu" else "cpu@box")
    assert marker in page_of(client, vera, address)


def test_run_page_names_who_can_act_on_it(client: Client, vera: User, mara: User, run: TrainingRun) -> None:
    address = reverse("training-run-detail", args=[run.pk])
    assert GPU not in page_of(client, vera, address)
    stop("gpu0@box")
    page = page_of(client, vera, address)
    assert GPU in page
    assert "start unknown" not in page
    assert reverse("health-index") not in page, "only administrators can act on it"
    assert reverse("health-index") in page_of(client, mara, address)
    change("gpu0@box", stopped_at=None, paused_at=timezone.now())
    page = page_of(client, mara, address)
    assert GPU in page
    assert reverse("queue-index") in page


def test_home_shows_stalled_queue_for_own_jobs_only(
    client: Client, ed: User, vera: User, run: TrainingRun
) -> None:
    stop("gpu0@box")
    assert GPU in page_of(client, ed, reverse("home"))
    assert GPU not in page_of(client, vera, reverse("home"))
    change("gpu0@box", stopped_at=None)
    stop("cpu@box")
    assert "data-stalled-queue" not in page_of(client, ed, reverse("home"))
