"""The dispatcher publishes wake-ups, and repeats those that no worker could follow."""

from __future__ import annotations

import base64
import json
from datetime import timedelta

import pytest
from redis import Redis

from dashboard.management.commands.dispatch import Dispatcher
from dashboard.models import BaseModel, Dataset, Job, Outbox, Project, TrainingRun, WorkerNode
from dashboard.models.jobs.job_state import db_now
from tests.conftest import make_run
from workers.supervision.orphaned_jobs import holder

AGO = timedelta(minutes=10)


def submit(project: Project) -> Job:
    return Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)


def mark_all_sent(ago: timedelta = AGO) -> None:
    """Date all jobs back, and their wake-ups as sent some time ago."""
    Outbox.objects.update(sent_at=db_now(-ago))
    Job.objects.update(run_after=db_now(-AGO))


def unsent(job: Job) -> int:
    return job.outbox.filter(sent_at=None).count()


def register(name: str, queue: str = "cpu", **values: object) -> None:
    WorkerNode.objects.register(name, queue=queue, host="host", pid=1, **values)


def pause(name: str) -> None:
    WorkerNode.objects.get(name=name).pause(by="Mara")


# Publishing


def test_wake_up_is_published_once_and_holds_only_the_id(
    dispatcher: Dispatcher, project: Project, broker: Redis
) -> None:
    job = submit(project)
    assert (dispatcher.publish(), dispatcher.publish()) == (1, 0)
    (message,) = broker.lrange("graftworks:cpu", 0, -1)
    body = json.loads(base64.b64decode(json.loads(message)["body"]))
    assert body[:2] == [[job.pk], {}]


def test_wake_up_waits_while_the_broker_is_silent(dispatcher: Dispatcher, project: Project) -> None:
    job = submit(project)
    assert dispatcher.publish() == 0
    assert Outbox.objects.unsent().get().job == job
    since = WorkerNode.objects.get(name=dispatcher.name).broker_silent_since
    assert since
    dispatcher.next_broker_ping = 0
    dispatcher.publish()
    assert WorkerNode.objects.get(name=dispatcher.name).broker_silent_since == since


def test_return_of_the_broker_is_recorded(dispatcher: Dispatcher, broker: Redis) -> None:
    WorkerNode.objects.filter(name=dispatcher.name).update(broker_silent_since=db_now(-AGO))
    dispatcher.publish()
    assert WorkerNode.objects.get(name=dispatcher.name).broker_silent_since is None


def test_dispatcher_without_the_lead_publishes_nothing(dispatcher: Dispatcher, project: Project) -> None:
    submit(project)
    dispatcher.leads = False
    assert dispatcher.publish() == 0
    assert Outbox.objects.unsent().count() == 1


# Lost wake-ups


def test_lost_wake_up_is_repeated_once_for_an_idle_node(dispatcher: Dispatcher, project: Project) -> None:
    job = submit(project)
    mark_all_sent()
    dispatcher.wake_again()
    assert unsent(job) == 0, "no node is there to wake"
    register("cpu@host")
    for _round in range(2):
        dispatcher.wake_again()
    assert unsent(job) == 1


@pytest.mark.parametrize(("seconds", "is_repeated"), [(10, False), (40, True)])
def test_wake_up_is_lost_after_half_a_minute(
    dispatcher: Dispatcher, project: Project, seconds: int, is_repeated: bool
) -> None:
    job = submit(project)
    register("cpu@host")
    mark_all_sent(timedelta(seconds=seconds))
    dispatcher.wake_again()
    Outbox.objects.mark_sent(job.outbox.unsent().values_list("pk", flat=True))
    dispatcher.wake_again()
    assert job.outbox.count() == 1 + is_repeated


# Nodes that cannot take the job


def test_idle_node_is_woken_beside_a_paused_one(dispatcher: Dispatcher, project: Project) -> None:
    register("paused@host")
    register("idle@host")
    pause("paused@host")
    job = submit(project)
    mark_all_sent(timedelta())
    for _round in range(2):
        dispatcher.wake_past_paused()
    assert unsent(job) == 1


def test_no_wake_up_is_sent_while_all_nodes_are_paused(dispatcher: Dispatcher, project: Project) -> None:
    register("paused@host")
    pause("paused@host")
    job = submit(project)
    mark_all_sent()
    dispatcher.wake_past_paused()
    dispatcher.wake_again()
    assert unsent(job) == 0


def test_node_with_4bit_support_is_woken_beside_one_without(dispatcher: Dispatcher, run: TrainingRun) -> None:
    job = run.job
    assert job is not None
    Job.objects.filter(pk=job.pk).update(needs_4bit=True)
    register("cpu@host", "gpu")
    mark_all_sent(timedelta())
    dispatcher.wake_past_paused()
    assert unsent(job) == 0
    register("cuda@host", "gpu", loads_4bit=True)
    dispatcher.wake_past_paused()
    assert unsent(job) == 1


@pytest.fixture
def job_4bit(run: TrainingRun, project: Project, dataset: Dataset, base_model: BaseModel) -> Job:
    """A waiting job in 4 bits: the only node for it runs another job, its neighbour is idle."""
    register("cpu@host", "gpu")
    register("cuda@host", "gpu", loads_4bit=True)
    assert Job.objects.claim("gpu", worker="cuda@host", slot="cuda@host", **holder()) == run.job
    job = make_run(project, dataset, base_model, name="4 bits").job
    assert job is not None
    Job.objects.filter(pk=job.pk).update(needs_4bit=True)
    mark_all_sent()
    return job


@pytest.mark.parametrize("wake", ["wake_past_paused", "wake_again"])
def test_only_a_free_node_with_4bit_support_is_woken(
    dispatcher: Dispatcher, job_4bit: Job, wake: str
) -> None:
    getattr(dispatcher, wake)()
    assert not Outbox.objects.unsent().exists(), "the node is busy"
    WorkerNode.objects.filter(name="cuda@host").update(processes=2)
    getattr(dispatcher, wake)()
    assert unsent(job_4bit) == 1


def test_paused_node_with_4bit_support_is_not_woken(
    dispatcher: Dispatcher, job_4bit: Job, run: TrainingRun
) -> None:
    assert run.job
    run.job.request_cancel()
    run.job.move("stopped")
    pause("cuda@host")
    dispatcher.wake_past_paused()
    assert not Outbox.objects.unsent().exists()
