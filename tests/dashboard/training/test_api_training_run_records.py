"""Error, curves, scores, samples, events and log of a run in the API."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.models import Evaluation, MetricSeries, State, TrainingRun
from tests.conftest import finish
from tests.dashboard.conftest import publish
from tests.dashboard.refusals import refusal

RUNS = "/api/v1/runs"


def test_a_failed_run_has_an_error(api: Client, run: TrainingRun) -> None:
    assert run.job
    finish(run.job, State.FAILED, error_code="diverged", error_message="The loss grew.")
    answer = api.get(f"{RUNS}/{run.pk}").json()
    assert answer["state"] == "failed"
    assert answer["error"] == {"code": "diverged", "message": "The loss grew."}


def test_it_returns_a_curve_and_its_later_points(api: Client, run: TrainingRun) -> None:
    MetricSeries.objects.append(run, "train/loss", [(1, 2.5), (2, 2.0), (3, float("nan"))])
    points = api.get(f"{RUNS}/{run.pk}/metrics?name=train/loss").json()["points"]
    assert points == [[1, 2.5], [2, 2.0], [3, None]]
    later = api.get(f"{RUNS}/{run.pk}/metrics?name=train/loss&since=1").json()["points"]
    assert [step for step, _value in later] == [2, 3]
    assert api.get(f"{RUNS}/{run.pk}").json()["step"] == 3
    names = [one["name"] for one in api.get(f"{RUNS}/{run.pk}/metric-series").json()["data"]]
    assert names == ["train/loss"]


def test_a_known_curve_is_empty_before_its_first_point(api: Client, run: TrainingRun) -> None:
    for name in ("validation/loss", "train/token_accuracy", "validation/token_accuracy"):
        assert api.get(f"{RUNS}/{run.pk}/metrics?name={name}").json()["points"] == []


@pytest.mark.parametrize(
    "query",
    [
        "?name=train/fun",
        "?name=train%00loss",
        "?name=train/loss&since=99999999999999999999",
        "?name=train/loss&x=1",
    ],
)
def test_it_refuses_unknown_curves_and_parameters(api: Client, run: TrainingRun, query: str) -> None:
    refusal(api.get(f"{RUNS}/{run.pk}/metrics{query}"), 422)


def test_it_names_its_adapter(api: Client, run: TrainingRun) -> None:
    adapter = publish(run)
    answer = api.get(f"{RUNS}/{run.pk}").json()
    assert answer["adapter"] == {"id": adapter.pk, "name": "Triage", "version": 1}


def test_it_shows_evaluations_and_samples(api: Client, run: TrainingRun) -> None:
    job = Evaluation.objects.submit(publish(run), None)
    waiting = api.get(f"{RUNS}/{run.pk}/evaluations").json()
    assert {one["subject"] for one in waiting["data"]} == {"base", "adapter"}
    assert {one["state"] for one in waiting["data"]} == {"queued"}
    for evaluation in run.evaluations.all():
        item = {"row": 3, "prompt": "p", "expected": "e", "output": evaluation.subject, "scores": {}}
        evaluation.record_result(1, {"loss": 0.5, "exact_match": 1.0}, [item])
    finish(job)
    evaluation = api.get(f"{RUNS}/{run.pk}/evaluations").json()["data"][0]
    assert set(evaluation) == {
        "id", "subject", "split", "rows", "state", "metrics", "general_questions", "forgetting", "error",
    }  # fmt: skip
    assert (evaluation["state"], evaluation["rows"]) == ("succeeded", 1)
    assert evaluation["metrics"]["exact_match"] == 1.0
    sample = api.get(f"{RUNS}/{run.pk}/samples").json()["data"][0]
    assert (sample["row"], sample["base"], sample["adapter"]) == (3, "base", "adapter")


def test_it_returns_events_and_log(api: Client, run: TrainingRun) -> None:
    events = api.get(f"{RUNS}/{run.pk}/events").json()["data"]
    assert [one["event"] for one in events] == ["submit"]
    assert api.get(f"{RUNS}/{run.pk}/log").json() == {"text": ""}
