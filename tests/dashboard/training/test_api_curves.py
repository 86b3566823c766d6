"""One curve of several runs in the API."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoAssertNumQueries

from dashboard.models import MetricSeries, TrainingRun
from tests.dashboard.refusals import refusal

CURVES = "/api/v1/curves"


def again(run: TrainingRun) -> TrainingRun:
    """Return a second run like this one."""
    second = TrainingRun.objects.get(pk=run.pk)
    second.pk, second._state.adding = None, True
    second.save()
    return second


def test_it_returns_the_curves_in_the_order_of_the_request(api: Client, run: TrainingRun) -> None:
    other, empty = again(run), again(run)
    MetricSeries.objects.append(run, "train/loss", [(1, 2.5), (2, float("nan"))])
    MetricSeries.objects.append(other, "train/loss", [(1, 3.0)])
    MetricSeries.objects.append(other, "validation/loss", [(1, 9.0)])
    chosen = f"run={other.pk}&run={run.pk}&run={empty.pk}&run={run.pk}"
    assert api.get(f"{CURVES}?name=train/loss&{chosen}").json() == {
        "name": "train/loss",
        "data": [
            {"run": other.pk, "points": [[1, 3.0]]},
            {"run": run.pk, "points": [[1, 2.5], [2, None]]},
            {"run": empty.pk, "points": []},
        ],
    }


def test_more_runs_need_no_more_queries(
    api: Client,
    run: TrainingRun,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    runs = [run, *(again(run) for _ in range(5))]
    for one in runs:
        MetricSeries.objects.append(one, "train/loss", [(step, 1.0) for step in range(1, 3000)])
    few, many = ("&".join(f"run={one.pk}" for one in chosen) for chosen in (runs[:1], runs))
    with CaptureQueriesContext(connection) as of_one:
        api.get(f"{CURVES}?name=train/loss&{few}")
    with django_assert_max_num_queries(len(of_one)):
        answer = api.get(f"{CURVES}?name=train/loss&{many}")
    assert [len(one["points"]) for one in answer.json()["data"]] == [2999] * 6


@pytest.mark.parametrize(
    "query",
    ["?name=train/fun&run={run}", "?name=a%00b&run={run}", "?name=train/loss", "?run={run}",
     "?name=train/loss&run=0", "?name=train/loss&run=x", "?name=train/loss&run=99999999999999999999",
     "?name=train/loss&run={run}&x=1", "?name=train/loss" + "&run={run}" * 101],
)  # fmt: skip
def test_it_refuses_unknown_curves_and_parameters(api: Client, run: TrainingRun, query: str) -> None:
    refusal(api.get(CURVES + query.format(run=run.pk)), 422)


def test_an_unknown_run_is_named(api: Client, run: TrainingRun) -> None:
    error = refusal(api.get(f"{CURVES}?name=train/loss&run={run.pk}&run=123456"), 404)
    assert error["field"] == "run"
    assert "123456" in error["message"]
