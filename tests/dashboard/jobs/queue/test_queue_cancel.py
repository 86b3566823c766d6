"""Stopping a job on the queue page."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, Evaluation, Job, TrainingRun, User

LEAVES, DISCARDED = (
    "The job leaves the queue and does not start.",
    "The progress of the run is discarded. To keep it, stop the run on its own page.",
)


@pytest.fixture
def editor(client: Client, ed: User) -> Client:
    client.force_login(ed)
    return client


def stop(client: Client, run: TrainingRun, **values: str) -> Any:
    return client.post(reverse("queue-cancel", args=[run.job_id]), values)


SEEN = '<input type="hidden" name="seen" value="waiting">'


def board(client: Client) -> str:
    return client.get(reverse("queue-board")).content.decode()


def question(client: Client, run: TrainingRun, **headers: str) -> str:
    address = reverse("queue-cancel", args=[run.job_id])
    return client.get(address, headers=headers).content.decode()


def state(run: TrainingRun) -> str:
    return Job.objects.get(pk=run.job_id).state


def test_a_waiting_job_leaves_the_queue(editor: Client, run: TrainingRun) -> None:
    for page in (question(editor, run), question(editor, run, hx_request="true")):
        assert LEAVES in page
        assert SEEN in page
    assert stop(editor, run, seen="waiting", next="/datasets/1/").url == "/datasets/1/"
    assert state(run) == "cancelled"
    stop(editor, run)
    assert "had already ended" in editor.get(reverse("queue-index")).content.decode()


def test_a_running_job_stops(editor: Client, run: TrainingRun) -> None:
    assert run.job
    run.job.move("claim", attempt=1)
    assert DISCARDED in question(editor, run)
    assert 'name="seen"' not in question(editor, run)
    assert stop(editor, run).url == reverse("queue-index")
    assert state(run) == "cancelling"


def test_a_stop_is_confirmed_again_if_the_job_has_started_since(editor: Client, run: TrainingRun) -> None:
    assert run.job
    run.job.move("claim", attempt=1)
    answer = stop(editor, run, seen="waiting", next="/runs/")
    page = answer.content.decode()
    assert (answer.status_code, state(run)) == (422, "starting")
    for text in (
        "This job has started meanwhile, so work may be lost. Please choose again.",
        DISCARDED,
        run.get_absolute_url(),
        'name="next" value="/runs/"',
    ):
        assert text in page


@pytest.mark.parametrize(
    "back",
    ["https://evil.example.org/", "//evil.example.org", "/%2fevil.example", "javascript:alert(1)", "nowhere"],
)
def test_a_redirect_never_leaves_the_site(editor: Client, run: TrainingRun, back: str) -> None:
    assert stop(editor, run, next=back).url == reverse("queue-index")


def test_a_stop_names_the_number_of_its_runs(editor: Client, run: TrainingRun) -> None:
    other = TrainingRun.objects.get(pk=run.pk)
    other.pk, other._state.adding = None, True
    other.save()
    assert "The job leaves the queue. Its 2 runs do not start." in question(editor, run)
    Job.objects.get(pk=run.job_id).move("claim", attempt=1)
    assert "The progress of its 2 runs is discarded." in question(editor, run)


def test_scores_of_base_and_adapter_are_no_runs(editor: Client, adapter: Adapter, ed: User) -> None:
    job = Evaluation.objects.submit(adapter, ed)
    assert job.evaluations.count() == 2
    page = editor.get(reverse("queue-cancel", args=[job.pk])).content.decode()
    assert LEAVES in page


@pytest.fixture
def shared_job(base_model: BaseModel) -> Job:
    """The inference job of a base model that all projects share."""
    BaseModel.objects.filter(pk=base_model.pk).update(project=None)
    return BaseModel.objects.get(pk=base_model.pk).serve()


def test_editors_and_administrators_stop_the_inference_job_of_a_shared_model(
    client: Client, shared_job: Job, vera: User, ed: User, otto: User
) -> None:
    address = reverse("queue-cancel", args=[shared_job.pk])
    client.force_login(vera)
    assert client.get(address).status_code == client.post(address).status_code == 403
    assert address not in board(client)
    root = User.objects.create_superuser("root@example.org")
    for person in (ed, otto, root):
        client.force_login(person)
        assert address in board(client)
        assert client.get(address).status_code == 200
        assert client.post(address).status_code == 302
        shared_job.refresh_from_db()
        assert shared_job.state == "cancelled"
        Job.objects.filter(pk=shared_job.pk).update(state="queued", finished_at=None)


def test_no_editor_stops_another_shared_job(client: Client, shared_job: Job, ed: User) -> None:
    Job.objects.filter(pk=shared_job.pk).update(kind=Job.Kind.INSPECT)
    client.force_login(ed)
    assert client.post(reverse("queue-cancel", args=[shared_job.pk])).status_code == 404
