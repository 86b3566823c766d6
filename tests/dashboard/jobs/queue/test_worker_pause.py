"""Pausing and resuming a worker."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Job, Outbox, Project, TrainingRun, User, WorkerNode
from dashboard.models.jobs.job_queryset import JobQuerySet


@pytest.fixture
def node(db: None) -> WorkerNode:
    WorkerNode.objects.register("gpu0@box", queue="gpu", host="box", pid=1, device="NVIDIA H100", gpu=0)
    return WorkerNode.objects.get()


def press(client: Client, node: WorkerNode, verb: str = "pause") -> int:
    return client.post(reverse(f"worker-{verb}", args=[node.pk])).status_code


def paused(node: WorkerNode) -> bool:
    node.refresh_from_db()
    return node.paused_at is not None


def test_a_manager_of_all_projects_pauses_and_resumes(client: Client, mara: User, node: WorkerNode) -> None:
    client.force_login(mara)
    assert (press(client, node), paused(node)) == (302, True)
    page = client.get(reverse("queue-index")).content.decode()
    for text in (
        "NVIDIA H100, GPU 0",
        "Paused by mara@example.org",
        "Resume gpu0@box",
    ):
        assert text in page
    assert (press(client, node, "resume"), paused(node)) == (302, False)


def test_a_manager_of_some_projects_cannot_pause(
    client: Client, mara: User, other_project: Project, node: WorkerNode
) -> None:
    client.force_login(mara)
    assert (press(client, node), paused(node)) == (403, False)
    assert reverse("worker-pause", args=[node.pk]) not in client.get(reverse("queue-index")).content.decode()


def test_a_superuser_pauses_without_a_project(client: Client, project: Project, node: WorkerNode) -> None:
    client.force_login(User.objects.create_superuser("root@example.org"))
    assert (press(client, node), paused(node)) == (302, True)
    assert "Resume gpu0@box" in client.get(reverse("queue-index")).content.decode()


def test_a_pause_during_a_claim_takes_effect(
    node: WorkerNode, run: TrainingRun, mara: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_order = JobQuerySet.claim_order

    def meanwhile(jobs: JobQuerySet, queue: str, **options: bool) -> object:
        node.pause(mara)
        return claim_order(jobs, queue, **options)

    monkeypatch.setattr(JobQuerySet, "claim_order", meanwhile)
    claimed = Job.objects.claim("gpu", worker=node.name, slot="s", host="h", pid=1, pid_started=1.0)
    assert claimed is None
    monkeypatch.setattr(JobQuerySet, "claim_order", claim_order)
    node.resume()
    assert Job.objects.claim("gpu", worker=node.name, slot="s", host="h", pid=1, pid_started=1.0)


def test_a_dispatcher_cannot_be_paused(client: Client, mara: User) -> None:
    WorkerNode.objects.register("dispatcher@box", kind=WorkerNode.Kind.DISPATCHER, host="box", pid=1)
    client.force_login(mara)
    assert press(client, WorkerNode.objects.get()) == 404


def test_pausing_twice_keeps_the_first_user(client: Client, mara: User, node: WorkerNode) -> None:
    node.pause(by="Root")
    client.force_login(mara)
    press(client, node)
    node.refresh_from_db()
    assert node.paused_by == "Root"


def test_resuming_wakes_the_worker(client: Client, mara: User, project: Project, node: WorkerNode) -> None:
    node.pause(by="Mara")
    job = Job.objects.submit(Job.Kind.TRAIN, {}, project=project, by=mara)
    Outbox.objects.mark_sent(job.outbox.values_list("pk", flat=True))
    client.force_login(mara)
    press(client, node, "resume")
    assert job.outbox.filter(sent_at=None).count() == 1
