"""What pages say while nobody takes the jobs of a queue, whoever works for the other one."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from dashboard.models import BaseModel, Dataset, Evaluation, Project, TrainingRun, User, WorkerNode
from dashboard.models.standstill import standstills, told
from tests.conftest import make_dataset
from tests.dashboard.conftest import publish
from tests.dashboard.studies import make_study

GONE = "No worker for training answers, so trainings and evaluations wait."
PAUSED = "Every worker for training is paused, so trainings and evaluations wait."
LIGHT = "No worker for light work answers, so imports, inspections and judge evaluations wait."


@pytest.fixture(autouse=True)
def workers(db: None) -> None:
    """One for training and one for light work, as every installation has them."""
    for name in ("gpu0", "cpu"):
        WorkerNode.objects.register(f"{name}@box", queue=name.rstrip("0"), host="box", pid=1)
    WorkerNode.objects.register("dispatcher@box", kind="dispatcher", host="box", pid=2)


def change(name: str, **fields: object) -> None:
    """Let a worker be otherwise."""
    WorkerNode.objects.filter(name=name).update(**fields)


def leave(*names: str) -> None:
    """These have said good-bye."""
    WorkerNode.objects.filter(name__in=names).update(stopped_at=timezone.now())


def sentences() -> list[str]:
    """What is told of all queues."""
    return [one.text for one in told(standstills())]


def page_of(client: Client, user: User, address: str) -> str:
    """The page as they see it."""
    client.force_login(user)
    return client.get(address).content.decode()


def test_nothing_is_said_while_both_queues_are_served() -> None:
    assert standstills() == {}


def test_a_worker_of_the_other_queue_does_not_count() -> None:
    leave("gpu0@box")
    assert sentences() == [f"{GONE} They are saved and start by themselves as soon as one is back."]
    change("gpu0@box", stopped_at=None)
    leave("cpu@box")
    assert sentences() == [f"{LIGHT} They are saved and start by themselves as soon as one is back."]


def test_one_that_takes_jobs_is_enough() -> None:
    WorkerNode.objects.register("gpu1@box", queue="gpu", host="box", pid=3)
    change("gpu0@box", paused_at=timezone.now())
    assert standstills() == {}


def test_a_pause_is_not_called_an_absence() -> None:
    change("gpu0@box", paused_at=timezone.now())
    assert sentences() == [f"{PAUSED} They are saved and start as soon as one is resumed."]


def test_a_worker_that_shuts_down_takes_nothing() -> None:
    change("gpu0@box", draining=True)
    assert sentences()[0].startswith("Every worker for training is shutting down")
    WorkerNode.objects.register("gpu1@box", queue="gpu", host="box", pid=3, paused_at=timezone.now())
    assert sentences()[0].startswith(PAUSED), "that one can be resumed"


def test_the_same_of_both_queues_is_said_once() -> None:
    leave("gpu0@box", "cpu@box")
    assert sentences() == [
        "No worker answers, so all jobs wait. They are saved and start by themselves as soon as one is back."
    ]
    change("gpu0@box", stopped_at=None, paused_at=timezone.now())
    assert len(sentences()) == 2


def test_it_takes_one_query(django_assert_num_queries: DjangoAssertNumQueries) -> None:
    for number in range(1, 20):
        WorkerNode.objects.register(f"gpu{number}@far", queue="gpu", host="far", pid=number)
    with django_assert_num_queries(1):
        standstills()


def test_a_run_page_names_the_reason(client: Client, vera: User, mara: User, run: TrainingRun) -> None:
    address = reverse("training-run-detail", args=[run.pk])
    assert "so trainings and evaluations wait" not in page_of(client, vera, address)
    leave("gpu0@box")
    page = page_of(client, vera, address)
    assert "number 1 in the queue" in page
    assert GONE in page
    assert "start unknown yet" not in page
    assert reverse("health-index") not in page, "only those who can mend it are sent there"
    assert reverse("health-index") in page_of(client, mara, address)
    change("gpu0@box", stopped_at=None, paused_at=timezone.now())
    page = page_of(client, mara, address)
    assert PAUSED in page
    assert reverse("queue-index") in page


def test_a_waiting_evaluation_names_the_reason(client: Client, vera: User, run: TrainingRun) -> None:
    Evaluation.objects.submit(publish(run), None)
    leave("gpu0@box")
    assert GONE in page_of(client, vera, reverse("training-run-progress", args=[run.pk]))


def test_a_run_at_work_does_not_speak_of_workers(client: Client, vera: User, run: TrainingRun) -> None:
    assert run.job
    run.job.move("claim", attempt=1, worker="gpu0@box")
    change("gpu0@box", draining=True)
    assert "so trainings" not in page_of(client, vera, reverse("training-run-progress", args=[run.pk]))


def test_home_names_the_reason_for_ones_own_jobs(
    client: Client, ed: User, vera: User, run: TrainingRun
) -> None:
    leave("gpu0@box")
    assert GONE in page_of(client, ed, reverse("home"))
    assert GONE not in page_of(client, vera, reverse("home")), "nothing of hers waits"
    change("gpu0@box", stopped_at=None, paused_at=timezone.now())
    assert PAUSED in page_of(client, ed, reverse("home-progress"))


def test_home_is_silent_about_a_queue_in_which_nothing_of_ones_own_waits(
    client: Client, ed: User, run: TrainingRun
) -> None:
    leave("cpu@box")
    assert "light work" not in page_of(client, ed, reverse("home"))


def test_the_board_names_each_queue_that_stands_still(client: Client, vera: User, mara: User) -> None:
    leave("gpu0@box")
    page = page_of(client, mara, reverse("queue-board"))
    assert GONE in page
    assert LIGHT not in page
    assert reverse("health-index") in page
    assert reverse("health-index") not in page_of(client, vera, reverse("queue-board"))


def test_a_study_names_the_reason(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model)
    address = reverse("study-grid", args=[study.pk])
    assert GONE not in page_of(client, vera, address)
    leave("gpu0@box")
    assert GONE in page_of(client, vera, address)


def test_an_import_names_the_reason(client: Client, vera: User, project: Project) -> None:
    waiting = make_dataset(project, "New", ready=False)
    addresses = [reverse(f"dataset-{name}", args=[waiting.pk]) for name in ("detail", "progress")]
    for address in addresses:
        assert LIGHT not in page_of(client, vera, address)
    leave("cpu@box")
    for address in addresses:
        assert LIGHT in page_of(client, vera, address)


def test_an_inspection_names_the_reason(client: Client, vera: User, base_model: BaseModel) -> None:
    base_model.inspect()
    leave("cpu@box")
    for name in ("detail", "progress"):
        assert LIGHT in page_of(client, vera, reverse(f"base-model-{name}", args=[base_model.pk]))
