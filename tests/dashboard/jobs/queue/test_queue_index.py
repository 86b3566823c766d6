"""The page "Workers and queue": its jobs and workers, and the parts that only members of a project see."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

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
from dashboard.presenters.stages import outcome_summary
from tests.conftest import finish, make_dataset, make_run
from tests.dashboard.studies.factories import end_training, make_study

SLUGS = ("efficient", "mlp", "attention", "quality")


def add_node(name: str, kind: str = "worker", queue: str = "gpu", silent: int = 0) -> WorkerNode:
    """Add a node whose last heartbeat was `silent` seconds ago."""
    node = WorkerNode.objects.create(
        name=name, kind=kind, queue=queue, host="box", pid=1, device="CPU, 2 cores"
    )
    WorkerNode.objects.filter(pk=node.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=silent))
    return node


def board(client: Client) -> str:
    return client.get(reverse("queue-board")).content.decode()


def rows(client: Client, user: User, part: str = "waiting") -> list[Any]:
    client.force_login(user)
    return list(client.get(reverse("queue-index")).context[part])


def test_positions_are_counted_per_queue(client: Client, vera: User, run: TrainingRun) -> None:
    urgent = make_run(run.project, run.dataset_version.dataset, run.base_model, name="Urgent")
    Job.objects.filter(training_runs=urgent).update(priority=1)
    make_dataset(run.project, "Fresh", ready=False)
    waiting = rows(client, vera)
    assert [(row.job.queue, row.title, row.position) for row in waiting] == [
        ("gpu", "Urgent", 1), ("gpu", "Triage", 2), ("cpu", "Fresh:v1", 1)
    ]  # fmt: skip
    assert [row.position for row in waiting] == [Job.objects.get(pk=row.job.pk).position() for row in waiting]


def test_jobs_of_a_study_are_named_by_study_and_seed(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, seeds=[1, 2])
    end_training(study.jobs().earliest("pk"))
    study.advance()
    assert {(row.job.kind, row.title, row.url) for row in rows(client, vera)} == {
        ("train", "Placement · seed 2", study.get_absolute_url()),
        ("evaluate", "Placement · seed 1", study.get_absolute_url()),
    }


def test_a_learning_rate_search_is_named_by_its_study(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    make_study(project, dataset, base_model, seeds=[1], learning_rates=[1e-4, 2e-4])
    assert [row.title for row in rows(client, vera)] == ["Placement · learning rates"]


def test_a_worker_is_shown_with_its_job(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    assert "unknown" in board(client)
    add_node("gpu0@box")
    assert "in a moment" in board(client)
    User.objects.filter(email="ed@example.org").update(first_name="Edda")
    assert run.job
    run.job.move("claim", attempt=1, worker="gpu0@box")
    run.job.move("progress")
    run.job.update_progress(phase="training", step=3, total_steps=10)
    page = board(client)
    for text in ("gpu0@box", "CPU, 2 cores", "Online", "Training", "30 %", "Edda", run.get_absolute_url()):
        assert text in page


def test_jobs_of_other_projects_are_anonymous(
    client: Client, vera: User, other_project: Project, otto: User
) -> None:
    make_dataset(other_project, "Secret plans", by=otto, ready=False)
    client.force_login(vera)
    page = board(client)
    assert "Another project&#x27;s job" in page
    for secret in ("Secret plans", "Elsewhere", "otto@example.org"):
        assert secret not in page


def test_actions_are_shown_to_those_who_may_use_them(
    client: Client, mara: User, ed: User, vera: User, run: TrainingRun
) -> None:
    addresses = [reverse(f"queue-{action}", args=[run.job_id]) for action in ("cancel", "prioritise")]
    for user, is_shown in ((vera, [False, False]), (ed, [True, False]), (mara, [True, True])):
        client.force_login(user)
        page = board(client)
        assert [address in page for address in addresses] == is_shown


def test_a_silent_worker_stalls_the_queue(client: Client, vera: User, run: TrainingRun) -> None:
    add_node("gpu0@box", silent=60)
    client.force_login(vera)
    page = board(client)
    for text in ("Not responding", 'data-stalled-queue="all"', "Queue unavailable, your job is saved"):
        assert text in page


def test_only_overdue_wake_ups_of_waiting_jobs_are_reported(
    client: Client, vera: User, run: TrainingRun
) -> None:
    add_node("gpu0@box")
    add_node("dispatch@box", kind="dispatcher", queue="")
    client.force_login(vera)
    assert "Queue unavailable" not in board(client)
    Outbox.objects.update(created_at=timezone.now() - timedelta(seconds=40))
    page = board(client)
    assert "The broker" in page
    assert 'data-stalled-queue="gpu"' not in page
    assert run.job
    run.job.request_cancel()
    assert "Queue unavailable" not in board(client)


def test_a_stopped_node_is_not_shown(client: Client, vera: User) -> None:
    node = add_node("old@box")
    WorkerNode.objects.filter(pk=node.pk).update(stopped_at=timezone.now())
    client.force_login(vera)
    assert "old@box" not in board(client)


@pytest.mark.parametrize("jobs", [10, 1000])
def test_queries_do_not_grow_with_the_jobs(
    client: Client, mara: User, run: TrainingRun, jobs: int, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    add_node("gpu0@box")
    users = [mara, run.created_by, None]
    Job.objects.bulk_create(
        Job(kind="train", queue="gpu", spec={}, project=run.project, created_by=users[number % 3])
        for number in range(jobs)
    )
    client.force_login(mara)
    board(client)
    with django_assert_num_queries(18):
        board(client)


def test_the_first_jobs_and_the_users_own_are_shown(
    client: Client, vera: User, run: TrainingRun, mara: User
) -> None:
    for user, priority, count in ((mara, 0, 60), (vera, -1, 2)):
        Job.objects.bulk_create(
            Job(kind="train", queue="gpu", spec={}, project=run.project, created_by=user, priority=priority)
            for _number in range(count)
        )
    assert [row.position for row in rows(client, vera)] == [*range(1, 21), 62, 63]
    assert "and 41 more" in board(client)


def test_jobs_that_ended_in_the_last_day_are_shown(
    client: Client, vera: User, dataset: Dataset, other_project: Project
) -> None:
    make_dataset(other_project, "Secret plans")
    old = make_dataset(dataset.project, "Old", by=vera)
    Job.objects.filter(dataset_versions__dataset=old).update(finished_at=timezone.now() - timedelta(days=2))
    titles = " ".join(row.title for row in rows(client, vera, "ended"))
    assert "Tickets" in titles
    assert "Old" not in titles
    assert "Secret" not in titles


@pytest.mark.parametrize("route", ["queue-index", "queue-board"])
def test_anonymous_users_are_sent_to_sign_in(client: Client, vera: User, route: str) -> None:
    assert client.get(reverse(route)).status_code == 302


FINISHED, EARLY, DIVERGED = ("succeeded", ""), ("stopped_early", ""), ("failed", "diverged")
FAILED, STOPPED = ("failed", "publish_failed"), ("cancelled", "")


def end_runs(job: Job, *endings: tuple[str, str]) -> Job:
    """End each run of the job with an outcome and error code."""
    for run, (outcome, code) in zip(job.training_runs.order_by("pk"), endings, strict=True):
        TrainingRun.objects.filter(pk=run.pk).update(outcome=outcome, error_code=code)
    return Job.objects.get(pk=job.pk)


def ended_study(study: Study, *endings: tuple[str, str]) -> Job:
    return end_runs(finish(study.jobs().earliest("pk"), State.SUCCEEDED), *endings)


def test_the_outcomes_of_several_runs_are_counted(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, slugs=("efficient", "mlp", "quality"), seeds=[1])
    job = finish(study.jobs().earliest("pk"))
    for endings, text in (
        ((FINISHED, FINISHED, FINISHED), "3 of 3 finished"),
        ((FINISHED, FINISHED, DIVERGED), "2 of 3 finished, 1 diverged"),
        ((FINISHED, EARLY, STOPPED), "2 of 3 finished, 1 stopped"),
        ((EARLY, DIVERGED, FAILED), "1 of 3 finished, 1 diverged, 1 failed"),
        ((DIVERGED, DIVERGED, FAILED), "none of 3 finished, 2 diverged, 1 failed"),
    ):
        job = end_runs(job, *endings)
        assert outcome_summary(job, job.training_runs.all()) == text


def test_a_job_of_one_run_has_no_outcome_counts(client: Client, vera: User, run: TrainingRun) -> None:
    finish(run.job)  # type: ignore[arg-type]
    run.end("succeeded", step=10)
    client.force_login(vera)
    page = board(client)
    assert "<span>Finished</span>" in page
    assert "of 1 finished" not in page


def test_queries_do_not_grow_with_the_runs_of_a_job(
    client: Client,
    vera: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    client.force_login(vera)
    ended_study(make_study(project, dataset, base_model, seeds=[1]), FINISHED, DIVERGED)
    make_study(project, dataset, base_model, seeds=[1])
    with CaptureQueriesContext(connection) as few:
        board(client)
    many = make_study(project, dataset, base_model, slugs=SLUGS, seeds=[1])
    ended_study(many, FINISHED, EARLY, DIVERGED, STOPPED)
    make_study(project, dataset, base_model, slugs=SLUGS, seeds=[1, 2])
    with django_assert_max_num_queries(len(few)):
        assert "<span>2 of 4 finished, 1 diverged, 1 stopped</span>" in board(client)
