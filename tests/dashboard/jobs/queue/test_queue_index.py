"""Workers and queue: who is there, what runs and waits, and what only members of a project may read."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from dashboard.models import (
    BaseModel,
    Dataset,
    Job,
    Outbox,
    Project,
    State,
    Study,
    TrainingRun,
    User,
    WorkerNode,
)
from tests.conftest import finish, make_dataset, make_run
from tests.dashboard.studies.factories import end_training, make_study


def add_node(name: str, kind: str = "worker", queue: str = "gpu", silent: int = 0) -> WorkerNode:
    """A node that was last heard of `silent` seconds ago."""
    node = WorkerNode.objects.create(
        name=name, kind=kind, queue=queue, host="box", pid=1, device="CPU, 2 cores"
    )
    WorkerNode.objects.filter(pk=node.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=silent))
    return node


def board(client: Client) -> str:
    return client.get(reverse("queue-board")).content.decode()


def test_it_shows_who_waits_in_which_place(client: Client, vera: User, run: TrainingRun) -> None:
    make_run(run.project, run.dataset_version.dataset, run.base_model, by=run.created_by, name="Later")
    client.force_login(vera)
    lines = client.get(reverse("queue-index")).context["waiting"]
    assert [(line.title, line.position) for line in lines] == [("Triage", 1), ("Later", 2)]


def test_a_job_of_a_study_is_called_by_study_and_seed(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1, 2])
    first = study.jobs().earliest("pk")
    end_training(first)
    study.advance()
    client.force_login(vera)
    lines = client.get(reverse("queue-index")).context["waiting"]
    found = {(line.job.kind, line.title, line.url) for line in lines}
    assert found == {
        ("train", "Placement · seed 2", study.get_absolute_url()),
        ("evaluate", "Placement · seed 1", study.get_absolute_url()),
    }


def test_a_search_for_learning_rates_says_so(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4])
    client.force_login(vera)
    assert [line.title for line in client.get(reverse("queue-index")).context["waiting"]] == [
        "Placement · learning rates"
    ]


def test_the_board_needs_no_more_queries_for_more_arms(
    client: Client,
    vera: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    client.force_login(vera)
    make_study(project, dataset, base_model, seeds=[1])
    with CaptureQueriesContext(connection) as few:
        board(client)
    make_study(project, dataset, base_model, slugs=("efficient", "mlp", "attention", "quality"), seeds=[1, 2])
    with django_assert_max_num_queries(len(few)):
        board(client)


def test_each_queue_has_its_own_places(client: Client, vera: User, run: TrainingRun) -> None:
    make_dataset(run.project, "Fresh", ready=False)
    client.force_login(vera)
    lines = client.get(reverse("queue-index")).context["waiting"]
    assert [(line.job.queue, line.position) for line in lines] == [("gpu", 1), ("cpu", 1)]


def test_it_agrees_with_the_jobs_own_position(client: Client, vera: User, run: TrainingRun) -> None:
    later = make_run(run.project, run.dataset_version.dataset, run.base_model, name="Urgent")
    Job.objects.filter(training_runs=later).update(priority=5)
    client.force_login(vera)
    lines = client.get(reverse("queue-index")).context["waiting"]
    assert [line.position for line in lines] == [Job.objects.get(pk=line.job.pk).position() for line in lines]
    assert lines[0].title == "Urgent"


def test_it_shows_a_worker_and_its_job(client: Client, vera: User, run: TrainingRun) -> None:
    add_node("gpu0@box")
    assert run.job
    run.job.move("claim", attempt=1, worker="gpu0@box")
    run.job.move("progress")
    run.job.update_progress(phase="training", step=3, total_steps=10)
    client.force_login(vera)
    page = board(client)
    for words in ("gpu0@box", "CPU, 2 cores", "Online", "Training", "30 %", run.get_absolute_url()):
        assert words in page


def test_it_names_nothing_of_another_project(
    client: Client, vera: User, other_project: Project, otto: User
) -> None:
    make_dataset(other_project, "Secret plans", by=otto, ready=False)
    client.force_login(vera)
    page = board(client)
    assert "Another project&#x27;s job" in page
    for secret in ("Secret plans", "Elsewhere", "otto@example.org"):
        assert secret not in page


def test_only_those_who_work_there_may_stop(client: Client, vera: User, ed: User, run: TrainingRun) -> None:
    address = reverse("queue-cancel", args=[run.job_id])
    client.force_login(vera)
    assert address not in board(client)
    client.force_login(ed)
    assert address in board(client)


def test_silent_machinery_is_said_in_words(client: Client, vera: User, run: TrainingRun) -> None:
    add_node("gpu0@box", silent=60)
    client.force_login(vera)
    page = board(client)
    for words in ("Not responding", 'data-stalled-queue="all"', "Queue unavailable, your job is saved"):
        assert words in page


def test_unsent_wake_ups_are_said_in_words(client: Client, vera: User, run: TrainingRun) -> None:
    add_node("gpu0@box")
    add_node("dispatch@box", kind="dispatcher", queue="")
    client.force_login(vera)
    assert "Queue unavailable" not in board(client)
    Outbox.objects.filter(job=run.job).update(created_at=timezone.now() - timedelta(seconds=40))
    page = board(client)
    assert "Queue unavailable, your job is saved" in page
    assert "The broker" in page
    assert 'data-stalled-queue="gpu"' not in page


def test_a_stopped_job_raises_no_alarm(client: Client, vera: User, run: TrainingRun) -> None:
    add_node("gpu0@box")
    add_node("dispatch@box", kind="dispatcher", queue="")
    Outbox.objects.update(created_at=timezone.now() - timedelta(seconds=40))
    assert run.job
    run.job.request_cancel()
    client.force_login(vera)
    assert "Queue unavailable" not in board(client)


def test_a_node_that_said_good_bye_is_gone(client: Client, vera: User) -> None:
    node = add_node("old@box")
    WorkerNode.objects.filter(pk=node.pk).update(stopped_at=timezone.now())
    client.force_login(vera)
    assert "old@box" not in board(client)


@pytest.mark.parametrize("jobs", [10, 1000])
def test_more_jobs_need_no_more_queries(
    client: Client, mara: User, run: TrainingRun, jobs: int, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    add_node("gpu0@box")
    people = [mara, run.created_by, None]
    Job.objects.bulk_create(
        Job(kind="train", queue="gpu", spec={}, project=run.project, created_by=people[number % 3])
        for number in range(jobs)
    )
    client.force_login(mara)
    board(client)
    with django_assert_num_queries(38):
        board(client)


def test_it_shows_the_first_jobs_and_ones_own(
    client: Client, vera: User, run: TrainingRun, mara: User
) -> None:
    Job.objects.bulk_create(
        Job(kind="train", queue="gpu", spec={}, project=run.project, created_by=mara) for _number in range(60)
    )
    Job.objects.bulk_create(
        Job(kind="train", queue="gpu", spec={}, project=run.project, created_by=vera, priority=-1)
        for _number in range(2)
    )
    client.force_login(vera)
    page = client.get(reverse("queue-index"))
    assert [line.position for line in page.context["waiting"]] == [*range(1, 51), 62, 63]
    assert "and 11 more" in page.content.decode()


def test_it_shows_when_a_job_starts(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    assert "unknown" in board(client)
    add_node("gpu0@box")
    assert "in a moment" in board(client)


def test_first_names_are_shown_in_ones_own_projects(client: Client, vera: User, run: TrainingRun) -> None:
    User.objects.filter(email="ed@example.org").update(first_name="Edda")
    client.force_login(vera)
    assert "Edda" in board(client)


def test_only_a_manager_sees_how_to_change_priority(
    client: Client, mara: User, ed: User, run: TrainingRun
) -> None:
    address = reverse("queue-prioritise", args=[run.job_id])
    client.force_login(ed)
    assert address not in board(client)
    client.force_login(mara)
    assert address in board(client)


def test_it_tells_what_ended_in_the_last_day(
    client: Client, vera: User, dataset: Dataset, other_project: Project
) -> None:
    make_dataset(other_project, "Secret plans")
    old = make_dataset(dataset.project, "Old", by=vera)
    Job.objects.filter(dataset_versions__dataset=old).update(finished_at=timezone.now() - timedelta(days=2))
    client.force_login(vera)
    titles = [line.title for line in client.get(reverse("queue-index")).context["ended"]]
    assert any("Tickets" in title for title in titles)
    assert not [title for title in titles if "Old" in title or "Secret" in title]


@pytest.mark.parametrize("route", ["queue-index", "queue-board"])
def test_strangers_sign_in_first(client: Client, vera: User, route: str) -> None:
    assert client.get(reverse(route)).status_code == 302


def ended_study(study: Study, *endings: tuple[str, str]) -> Job:
    """The training job of a study, ended, with an outcome and error code for each of its runs."""
    job = study.jobs().earliest("pk")
    runs = list(job.training_runs.order_by("pk"))
    for run, (outcome, code) in zip(runs, endings, strict=True):
        TrainingRun.objects.filter(pk=run.pk).update(outcome=outcome, error_code=code)
    some = any(outcome in ("succeeded", "stopped_early") for outcome, _code in endings)
    return finish(job, State.SUCCEEDED if some else State.FAILED)


FINISHED, EARLY, DIVERGED = ("succeeded", ""), ("stopped_early", ""), ("failed", "diverged")
FAILED, STOPPED = ("failed", "publish_failed"), ("cancelled", "")


@pytest.mark.parametrize(
    ("endings", "words"),
    [
        ((FINISHED, FINISHED, FINISHED), "3 of 3 finished"),
        ((FINISHED, FINISHED, DIVERGED), "2 of 3 finished, 1 diverged"),
        ((FINISHED, EARLY, STOPPED), "2 of 3 finished, 1 stopped"),
        ((EARLY, DIVERGED, FAILED), "1 of 3 finished, 1 diverged, 1 failed"),
        ((DIVERGED, DIVERGED, FAILED), "none of 3 finished, 2 diverged, 1 failed"),
    ],
)
def test_a_job_of_several_runs_tells_how_each_of_them_ended(
    client: Client,
    vera: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    endings: tuple[tuple[str, str], ...],
    words: str,
) -> None:
    study = make_study(project, dataset, base_model, slugs=("efficient", "mlp", "quality"), seeds=[1])
    ended_study(study, *endings)
    client.force_login(vera)
    assert f"<span>{words}</span>" in board(client)


def test_a_job_of_one_run_has_plain_words(client: Client, vera: User, run: TrainingRun) -> None:
    assert run.job
    finish(run.job)
    run.end("succeeded", step=10)
    client.force_login(vera)
    text = board(client)
    assert "<span>Finished</span>" in text
    assert "of 1 finished" not in text


def test_more_runs_that_ended_need_no_more_queries(
    client: Client,
    vera: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    client.force_login(vera)
    ended_study(make_study(project, dataset, base_model, seeds=[1]), FINISHED, DIVERGED)
    with CaptureQueriesContext(connection) as few:
        board(client)
    slugs = ("efficient", "mlp", "attention", "quality")
    ended_study(
        make_study(project, dataset, base_model, slugs=slugs, seeds=[1]), FINISHED, EARLY, DIVERGED, STOPPED
    )
    with django_assert_max_num_queries(len(few)):
        assert "2 of 4 finished, 1 diverged, 1 stopped" in board(client)
