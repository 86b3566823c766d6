"""Judge jobs with a real HTTP server as judge."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from django.conf import settings as configured
from pytest_django import Settings

from dashboard.models import (
    EvaluationItem,
    Job,
    JobEvent,
    State,
    TrainingRun,
    User,
)
from dashboard.models.evaluations.judge_evaluation import evaluations_of, submit_judge_evaluation
from tests.dashboard.evaluations.test_judge_evaluation import scored
from tests.judges import Answer, Judge, completion, exact, judge
from tests.workers.conftest import claim
from workers.contract.judge import Endpoint
from workers.supervision import judge as module
from workers.supervision.engine_process import environment
from workers.tasks import attempt

__all__ = ["scored"]
KEY = "sk-canary-1618033988"
WorkOff = Callable[[str], Job]


@pytest.fixture
def listening(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """The judge of this installation: one request at a time, without retries."""
    monkeypatch.setattr(module, "RETRIES", 0)
    monkeypatch.setattr(module, "PARALLEL_CALLS", 1)
    with judge() as served:
        settings.JUDGE = Endpoint(served.url, "gpt-test", KEY)
        yield served


def submit(run: TrainingRun, by: User) -> Job:
    submitted = submit_judge_evaluation(run, by=by, judge=configured.JUDGE, rows=200)
    assert submitted
    return submitted


def verdicts(run: TrainingRun) -> list[float | None]:
    items = EvaluationItem.objects.filter(evaluation__in=evaluations_of(run)).order_by("evaluation", "row")
    return [item.scores.get("judge") for item in items]


def unreadable_for_row_3(material: dict[str, str]) -> Answer:
    return completion("Hm.") if material["question"] == "question 3" else exact(material)


def test_every_answer_gets_a_verdict(
    listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    submit(scored, ed)
    job = work_off("cpu")
    assert (job.state, job.kind, job.queue) == (State.SUCCEEDED, "judge", "cpu"), job.error
    assert verdicts(scored) == [0.0] * 6 + [1.0] * 4 + [0.0] * 2
    # Base model and adapter give the same wrong answer to two rows: it is sent once.
    assert len(listening.requests) == 10
    base, adapter = evaluations_of(scored).order_by("pk")
    assert (base.metrics["judge"], base.metrics["judge_rows"]) == (0.0, 6)
    assert adapter.metrics["judge"] == pytest.approx(4 / 6)
    assert (job.phase, job.step, job.total_steps) == ("judging", 10, 10)


def test_only_pending_answers_are_sent_again(
    listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    listening.answer = unreadable_for_row_3
    submit(scored, ed)
    job = work_off("cpu")
    assert (job.state, job.step, job.total_steps) == (State.SUCCEEDED, 8, 10)
    assert evaluations_of(scored).latest("pk").metrics["judge_rows"] == 5
    listening.answer = exact
    submit(scored, ed)
    assert work_off("cpu").state == State.SUCCEEDED
    assert {material["question"] for material in listening.materials[10:]} == {"question 3"}
    assert None not in verdicts(scored)


def test_another_model_replaces_all_verdicts(
    settings: Settings, listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    submit(scored, ed)
    work_off("cpu")
    settings.JUDGE = replace(settings.JUDGE, model="stricter")
    submit(scored, ed)
    assert set(verdicts(scored)) == {None}
    assert "judge" not in evaluations_of(scored).latest("pk").metrics
    work_off("cpu")
    assert None not in verdicts(scored)
    assert [request["model"] for request in listening.requests] == ["gpt-test"] * 10 + ["stricter"] * 10


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((200, b"not JSON", {}), "judge_unreadable"),
        ((500, b"Traceback (most recent call last)", {}), "judge_unavailable"),
    ],
)
def test_unusable_judge_fails_the_job(
    listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff, answer: Answer, code: str
) -> None:
    listening.answer = lambda _material: answer
    submit(scored, ed)
    job = work_off("cpu")
    assert (job.state, job.error_code) == (State.FAILED, code)
    assert set(verdicts(scored)) == {None}
    assert len(listening.requests) == 1


def test_verdicts_before_a_failure_are_kept(
    listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    listening.answer = lambda material: exact(material) if len(listening.requests) <= 3 else (401, b"", {})
    submit(scored, ed)
    assert work_off("cpu").error_code == "judge_unavailable"
    assert sum(verdict is not None for verdict in verdicts(scored)) >= 3
    # Answers are asked in no order, so the first may all be of one model.
    assert any("judge" in evaluation.metrics for evaluation in evaluations_of(scored))


def test_only_the_confirmed_judge_gets_requests(
    settings: Settings, listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    submit(scored, ed)
    settings.JUDGE = replace(settings.JUDGE, model="another")
    assert work_off("cpu").error_code == "judge_changed"
    submit(scored, ed)
    settings.JUDGE = Endpoint("", "")
    assert work_off("cpu").error_code == "judge_changed"
    assert listening.requests == []


def test_a_stop_keeps_the_verdicts_so_far(listening: Judge, scored: TrainingRun, ed: User) -> None:
    submit(scored, ed)
    job = claim("cpu")

    def cancel_soon() -> bool:
        if len(listening.requests) >= 3:
            Job.objects.get(pk=job.pk).request_cancel(ed)
        return False

    attempt(job, cancel_soon)
    job.refresh_from_db()
    assert job.state == State.CANCELLED
    assert 0 < job.step < 10


def test_a_drained_job_continues_with_what_is_pending(
    listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    submit(scored, ed)
    job = claim("cpu")
    attempt(job, lambda: len(listening.requests) > 2)
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED
    assert 0 < sum(verdict is not None for verdict in verdicts(scored)) < 12
    job.requeue_or_fail()
    job = work_off("cpu")
    assert (job.state, job.step, job.total_steps) == (State.SUCCEEDED, 10, 10)
    assert len(listening.requests) == 10
    assert None not in verdicts(scored)


def test_a_replaced_attempt_stores_nothing(listening: Judge, scored: TrainingRun, ed: User) -> None:
    submit(scored, ed)
    job = claim("cpu")
    Job.objects.filter(pk=job.pk).update(attempt=7)
    attempt(job, lambda: False)
    assert set(verdicts(scored)) == {None}
    assert Job.objects.get(pk=job.pk).state == State.STARTING


def test_api_key_is_only_in_the_header(
    listening: Judge,
    scored: TrainingRun,
    ed: User,
    work_off: WorkOff,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    listening.answer = lambda _material: (401, f"Incorrect API key provided: {KEY}".encode(), {})
    submit(scored, ed)
    job = work_off("cpu")
    assert listening.keys[0] == f"Bearer {KEY}"
    stored = [json.dumps(job.spec), job.error_message, *JobEvent.objects.values_list("text", flat=True)]
    assert not any(KEY in text for text in stored)
    out, err = capfd.readouterr()
    assert KEY not in caplog.text + out + err
    # The engine's process gets the environment that it needs, without the key.
    assert not any(KEY in value for kind in Job.Kind.values for value in environment(kind, tmp_path).values())
