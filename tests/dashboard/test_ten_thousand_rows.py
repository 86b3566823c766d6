"""Pages and API answers need no more queries with 10,000 runs than with 10, and pages stay small."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dashboard.models import Adapter, Evaluation, Job, JobEvent, State, TrainingRun
from dashboard.models.jobs.compute_use import ended_usage
from tests.conftest import succeed
from tests.dashboard.conftest import evaluate
from tests.dashboard.conftest import succeed as succeed_run
from tests.dashboard.routes import Route, World, client_for, create_world, routes

pytestmark = pytest.mark.django_db
FEW, MANY = 10, 10_000
# Of every ten jobs one waits.
WAITING = 10
LARGEST_PAGE = 120_000
# The first never ends, the next two read one file, and a table's file holds all of its rows.
FILES = ("-stream", "-download", "-content", "-csv")
# The study form reads the variance of an earlier evaluation, which a few runs do not have.
ONCE = 1


@pytest.fixture
def world() -> World:
    """The world of the routes, with a run that has ended and its scores."""
    found = create_world()
    run = TrainingRun.objects.get(pk=found.objects["run"])
    assert run.job
    succeed(run.job)
    succeed_run(run)
    evaluate(run.adapter, 0.1, 0.5)
    return found


def copies(row: Any, count: int) -> Iterator[Any]:
    """Yield new rows with the values of this one."""
    fields = [field for field in row._meta.concrete_fields if not (field.primary_key or field.generated)]
    values = {field.attname: getattr(row, field.attname) for field in fields}
    return (type(row)(**values) for _number in range(count))


def grow(world: World, count: int) -> None:
    """Copy the world's run, with all that belongs to it, until there are so many."""
    run = TrainingRun.objects.select_related("job", "adapter").get(pk=world.objects["run"])
    assert run.job
    own = list(run.evaluations.order_by("pk"))
    missing = count - TrainingRun.objects.count()
    jobs = list(copies(run.job, missing))
    for number, job in enumerate(jobs):
        job.created_at = job.run_after = timezone.now() - timedelta(minutes=number)
        if number % WAITING == 0:
            job.state, job.attempt, job.started_at, job.finished_at = State.QUEUED, 0, None, None
    Job.objects.bulk_create(jobs)
    events = list(run.job.events.all())
    JobEvent.objects.bulk_create(
        JobEvent(
            job=job, seq=one.seq, attempt=one.attempt, event=one.event,
            from_state=one.from_state, to_state=one.to_state, created_at=job.created_at,
        )
        for job in jobs
        for one in events[: 1 if job.state == State.QUEUED else None]
    )  # fmt: skip
    runs = list(copies(run, missing))
    for number, (copy, job) in enumerate(zip(runs, jobs, strict=True)):
        copy.job, copy.name = job, f"Triage {count} {number}"
        if job.state == State.QUEUED:
            copy.outcome, copy.ended_step, copy.training_seconds = "", None, None
    TrainingRun.objects.bulk_create(runs)
    ended = [copy for copy in runs if copy.outcome]
    adapters = list(copies(run.adapter, len(ended)))
    for adapter, copy in zip(adapters, ended, strict=True):
        adapter.run, adapter.name, adapter.folder = copy, copy.name, f"{copy.pk:064x}"
        adapter.sha256 = adapter.folder
    Adapter.objects.bulk_create(adapters)
    for one in own:
        if one.adapter_id is None:
            continue
        evaluations = list(copies(one, len(ended)))
        for evaluation, adapter in zip(evaluations, adapters, strict=True):
            evaluation.run, evaluation.adapter = adapter.run, adapter
        Evaluation.objects.bulk_create(evaluations)
    for rows in (run.stored_scores.all(), run.metric_series.all()):
        for one in rows:
            found = list(copies(one, len(ended)))
            for row, copy in zip(found, ended, strict=True):
                row.run = copy
            type(one)._default_manager.bulk_create(found)
    ended_usage.cache_clear()


def measure(world: World, route: Route) -> tuple[int, int]:
    """Return the queries of an answer and the bytes of a page; nothing for what is no answer to a GET."""
    client, address = client_for(world, "manager", route), route.address(world)
    answer = client.get(address)
    if answer.status_code != 200 or answer.streaming:
        return 0, 0
    # The first answer fills what the process keeps but for parts of pages, some of which last for seconds.
    caches["rendered"].clear()
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(address)
    is_page = answer.headers["Content-Type"].startswith("text/html")
    return len(captured), len(answer.content) if is_page else 0


def test_no_page_asks_or_sends_more_with_ten_thousand_runs(world: World) -> None:
    asked = [route for route in routes() if not route.name.endswith(FILES)]
    grow(world, FEW)
    few = {route: queries for route in asked if (queries := measure(world, route)[0])}
    assert len(few) > 80
    grow(world, MANY)
    many = {route: measure(world, route) for route in few}
    more = {route.name: (few[route], queries) for route, (queries, _size) in many.items()}
    assert {name: found for name, found in more.items() if found[1] > found[0] + ONCE} == {}
    assert {route.name: size for route, (_queries, size) in many.items() if size > LARGEST_PAGE} == {}
