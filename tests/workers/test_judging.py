"""A judge job from its row to its verdicts, against a judge that really listens."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_django import Settings

from dashboard.models import (
    BaseModel,
    Dataset,
    EvaluationItem,
    Job,
    JobEvent,
    JudgeEvaluation,
    Project,
    State,
    Study,
    TrainingRun,
    User,
)
from dashboard.models.judging import JudgeBusy, endpoint, evaluations_of, rows_of
from tests.conftest import make_run
from tests.dashboard.comparisons import score
from tests.dashboard.conftest import publish
from tests.dashboard.studies import conclude, make_study
from tests.judges import Answer, Judge, fair, judge, saying
from tests.workers.conftest import claim
from workers import judge as client
from workers import judging as glue
from workers.child import environment
from workers.tasks import attempt

KEY = "sk-canary-1618033988"
WorkOff = Callable[[str], Job]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries, and verdicts written at once."""
    monkeypatch.setattr(client, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(glue, "WRITE_SECONDS", 0.0)


@pytest.fixture
def listening(settings: Settings) -> Iterator[Judge]:
    """A judge that calls exact answers right, as this installation's own."""
    with judge() as found:
        set_up(settings, found)
        yield found


def set_up(settings: Settings, found: Judge, model: str = "gpt-test") -> None:
    settings.JUDGE_URL, settings.JUDGE_MODEL, settings.JUDGE_API_KEY = found.url, model, KEY


@pytest.fixture
def scored(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> TrainingRun:
    """A run whose adapter answers 4 of 6 rows right; its base none."""
    run = make_run(project, dataset, base_model, by=ed)
    score(publish(run), [1, 1, 1, 1, 0, 0])
    return run


def begin(run: TrainingRun | Study, by: User, rows: int = 200) -> JudgeEvaluation:
    found = endpoint()
    assert found
    return JudgeEvaluation.objects.submit(run, by=by, judge=found, rows=rows)


def verdicts(run: TrainingRun | Study) -> list[float | None]:
    items = EvaluationItem.objects.filter(evaluation__in=evaluations_of(run)).order_by("evaluation", "row")
    return [item.scores.get("judge") for item in items]


def test_every_answer_gets_its_verdict_and_each_evaluation_its_share(
    listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    judge_evaluation = begin(scored, ed)
    job = work_off("cpu")
    assert (job.state, job.kind, job.queue) == (State.SUCCEEDED, "judge", "cpu"), job.error
    assert verdicts(scored) == [0.0] * 6 + [1.0] * 4 + [0.0] * 2
    judge_evaluation.refresh_from_db()
    # The base says the same wrong thing to a row as the adapter does twice: sent once.
    assert (
        judge_evaluation.asked,
        judge_evaluation.judged,
        judge_evaluation.unreadable,
        judge_evaluation.unanswered,
    ) == (10, 10, 0, 0)
    assert len(listening.requests) == 10
    base, adapter = evaluations_of(scored).order_by("pk")
    assert (base.metrics["judge"], base.metrics["judge_rows"]) == (0.0, 6)
    assert adapter.metrics["judge"] == pytest.approx(4 / 6)
    assert (job.phase, job.step, job.total_steps) == ("judging", 10, 10)


def test_a_whole_study_is_judged_in_one_go(
    listening: Judge, project: Project, dataset: Dataset, base_model: BaseModel, ed: User, work_off: WorkOff
) -> None:
    table: Any = {name: {seed: [1, 0, 1] for seed in (0, 1, 2)} for name in ("base", "efficient", "quality")}
    study = conclude(make_study(project, dataset, base_model, seeds=[1, 2]), table)
    begin(study, ed)
    assert work_off("cpu").state == State.SUCCEEDED
    assert len(verdicts(study)) == 15
    # All five subjects answered alike, so each row was sent once.
    assert len(listening.requests) == 3
    study.refresh_from_db()
    assert study.metric == "exact_match"


def test_only_drawn_rows_are_sent(listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff) -> None:
    begin(scored, ed, rows=2)
    assert work_off("cpu").state == State.SUCCEEDED
    assert len({one["question"] for one in listening.asked}) == 2
    assert sum(found is not None for found in verdicts(scored)) == 4


def test_replies_that_cannot_be_read_are_counted_and_the_rest_counts(
    settings: Settings, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    def moody(material: dict[str, str]) -> Answer:
        return saying("Hm.") if material["question"] == "question 3" else fair(material)

    with judge(moody) as listening:
        set_up(settings, listening)
        judge_evaluation = begin(scored, ed)
        assert work_off("cpu").state == State.SUCCEEDED
    judge_evaluation.refresh_from_db()
    assert (judge_evaluation.asked, judge_evaluation.judged, judge_evaluation.unreadable) == (10, 8, 2)
    assert verdicts(scored).count(None) == 2
    assert evaluations_of(scored).latest("pk").metrics["judge_rows"] == 5


def test_what_is_open_is_asked_again_and_nothing_else(
    settings: Settings, listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    listening.answer = lambda material: (
        saying("?") if material["question"] == "question 3" else fair(material)
    )
    begin(scored, ed)
    work_off("cpu")
    listening.answer, before = fair, len(listening.requests)
    again = begin(scored, ed)
    assert work_off("cpu").state == State.SUCCEEDED
    assert {one["question"] for one in listening.asked[before:]} == {"question 3"}
    again.refresh_from_db()
    assert (again.asked, again.judged) == (2, 2)
    assert None not in verdicts(scored)


def test_another_model_judges_everything_anew(
    settings: Settings, listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    begin(scored, ed)
    work_off("cpu")
    set_up(settings, listening, model="stricter")
    begin(scored, ed)
    assert set(verdicts(scored)) == {None}
    assert "judge" not in evaluations_of(scored).latest("pk").metrics
    work_off("cpu")
    assert None not in verdicts(scored)
    assert [one["model"] for one in listening.requests] == ["gpt-test"] * 10 + ["stricter"] * 10


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((401, b"Incorrect API key provided: " + KEY.encode(), {}), "judge_refused", "JUDGE_API_KEY"),
        ((404, b"", {}), "judge_refused", "JUDGE_MODEL"),
        ((200, b"not JSON", {}), "judge_unreadable", "None of the judge's 10 replies"),
        ((500, b"Traceback (most recent call last)", {}), "judge_silent", "8 times in a row"),
    ],
)
def test_a_judge_that_cannot_judge_fails_the_job_in_words(
    settings: Settings,
    scored: TrainingRun,
    ed: User,
    work_off: WorkOff,
    answer: Answer,
    code: str,
    words: str,
) -> None:
    with judge(lambda _material: answer) as listening:
        set_up(settings, listening)
        begin(scored, ed)
        job = work_off("cpu")
    assert (job.state, job.error_code) == (State.FAILED, code)
    assert words in job.error_message
    assert set(verdicts(scored)) == {None}


def test_what_was_judged_before_the_judge_fell_silent_is_kept(
    settings: Settings, scored: TrainingRun, ed: User, work_off: WorkOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glue, "CALLS", 1)
    monkeypatch.setattr(glue, "SILENT", 2)
    told: list[int] = []

    def failing(material: dict[str, str]) -> Answer:
        told.append(1)
        return fair(material) if len(told) <= 3 else (503, b"", {})

    with judge(failing) as listening:
        set_up(settings, listening)
        begin(scored, ed)
        assert work_off("cpu").error_code == "judge_silent"
    assert sum(found is not None for found in verdicts(scored)) == 3
    assert "judge" in evaluations_of(scored).order_by("pk")[0].metrics


def test_the_judge_that_was_agreed_to_is_the_one_that_is_asked(
    settings: Settings, listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff
) -> None:
    begin(scored, ed)
    set_up(settings, listening, model="another")
    assert work_off("cpu").error_code == "judge_changed"
    begin(scored, ed)
    settings.JUDGE_URL = ""
    assert work_off("cpu").error_code == "judge_off"
    assert listening.requests == []


def test_two_clicks_make_one_judging(listening: Judge, scored: TrainingRun, ed: User) -> None:
    begin(scored, ed)
    with pytest.raises(JudgeBusy):
        begin(scored, ed)


def test_a_stop_leaves_what_is_judged(
    settings: Settings, scored: TrainingRun, ed: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glue, "CALLS", 1)

    def slowly(material: dict[str, str]) -> Answer:
        time.sleep(0.1)
        return fair(material)

    with judge(slowly) as listening:
        set_up(settings, listening)
        judge_evaluation = begin(scored, ed)
        job = claim("cpu")

        def cancel_soon() -> bool:
            if len(listening.requests) == 3:
                Job.objects.get(pk=job.pk).request_cancel(ed)
            return False

        attempt(job, cancel_soon)
    job.refresh_from_db()
    assert job.state == State.CANCELLED
    judge_evaluation.refresh_from_db()
    assert 0 < judge_evaluation.judged < 10


def test_a_worker_that_shuts_down_puts_it_aside_and_it_goes_on(
    listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glue, "CALLS", 1)
    begin(scored, ed)
    job = claim("cpu")
    attempt(job, lambda: len(listening.requests) > 2)
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED
    done = sum(found is not None for found in verdicts(scored))
    assert 0 < done < 12
    job.requeue_or_fail()
    assert work_off("cpu").state == State.SUCCEEDED
    assert len(listening.requests) in (10, 11)
    assert None not in verdicts(scored)


@pytest.fixture
def put_aside(
    listening: Judge, scored: TrainingRun, ed: User, monkeypatch: pytest.MonkeyPatch
) -> JudgeEvaluation:
    """A judge evaluation whose first attempt has brought a few verdicts, queued again."""
    monkeypatch.setattr(glue, "CALLS", 1)
    judge_evaluation = begin(scored, ed)
    job = claim("cpu")
    attempt(job, lambda: len(listening.requests) > 2)
    job.refresh_from_db()
    job.requeue_or_fail()
    judge_evaluation.refresh_from_db()
    assert (judge_evaluation.asked, 0 < judge_evaluation.judged < 10) == (10, True)
    return judge_evaluation


def test_what_earlier_attempts_have_judged_counts(
    put_aside: JudgeEvaluation, scored: TrainingRun, work_off: WorkOff
) -> None:
    job = work_off("cpu")
    assert (job.state, job.step, job.total_steps) == (State.SUCCEEDED, 10, 10)
    put_aside.refresh_from_db()
    assert (put_aside.asked, put_aside.judged) == (10, 10)
    adapter = evaluations_of(scored).get(subject="adapter")
    assert (adapter.metrics["judge"], adapter.metrics["judge_rows"]) == (pytest.approx(4 / 6), 6)


def test_a_rest_that_cannot_be_read_fails_nothing(
    put_aside: JudgeEvaluation, listening: Judge, work_off: WorkOff
) -> None:
    before = put_aside.judged
    listening.answer = lambda _material: saying("Hm.")
    job = work_off("cpu")
    assert job.state == State.SUCCEEDED, job.error
    put_aside.refresh_from_db()
    assert (put_aside.asked, put_aside.judged, put_aside.unreadable) == (10, before, 10 - before)


def test_an_attempt_without_a_verdict_of_its_own_was_in_vain(
    put_aside: JudgeEvaluation, listening: Judge
) -> None:
    listening.answer = lambda _material: saying("Hm.")
    job = claim("cpu")
    seen: list[int] = []

    def draining() -> bool:
        seen.append(Job.objects.get(pk=job.pk).failed_attempts)
        return len(seen) > 2

    attempt(job, draining)
    assert set(seen) == {1}


def test_a_stop_in_the_last_moment_still_sums_up(
    listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(scored, ed)
    end = glue._end

    def too_late(job: Job, *rest: Any) -> None:
        Job.objects.get(pk=job.pk).request_cancel(ed)
        end(job, *rest)

    monkeypatch.setattr(glue, "_end", too_late)
    assert work_off("cpu").state == State.CANCELLED
    assert [one.metrics["judge_rows"] for one in evaluations_of(scored)] == [6, 6]


def test_a_larger_number_of_rows_holds_the_rows_of_a_smaller_one(scored: TrainingRun) -> None:
    drawn = [set(rows_of(evaluations_of(scored), most)) for most in range(8)]
    assert [len(rows) for rows in drawn] == [0, 1, 2, 3, 4, 5, 6, 6]
    assert all(fewer <= more for fewer, more in itertools.pairwise(drawn))


def test_one_that_was_replaced_writes_nothing_more(listening: Judge, scored: TrainingRun, ed: User) -> None:
    begin(scored, ed)
    job = claim("cpu")
    Job.objects.filter(pk=job.pk).update(attempt=7)
    attempt(job, lambda: False)
    assert set(verdicts(scored)) == {None}
    assert Job.objects.get(pk=job.pk).state == State.STARTING


def test_the_key_is_nowhere_but_in_the_header(
    listening: Judge,
    scored: TrainingRun,
    ed: User,
    work_off: WorkOff,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    listening.answer = lambda _material: (401, f"Incorrect API key provided: {KEY}".encode(), {})
    begin(scored, ed)
    job = work_off("cpu")
    assert listening.headers[0]["Authorization"] == f"Bearer {KEY}"
    stored = [json.dumps(job.spec), job.error_message, *JobEvent.objects.values_list("text", flat=True)]
    stored += [str(row) for row in JudgeEvaluation.objects.values_list()]
    assert not any(KEY in text for text in stored)
    out, err = capfd.readouterr()
    assert KEY not in caplog.text + out + err
    # The engine's process may know what it needs, and this is not among it.
    assert not any(KEY in value for kind in Job.Kind.values for value in environment(kind, tmp_path).values())


def test_its_threads_end_with_it(listening: Judge, scored: TrainingRun, ed: User, work_off: WorkOff) -> None:
    begin(scored, ed)
    work_off("cpu")
    until = time.monotonic() + 5
    while any(one.name.startswith("judge") for one in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.05)
