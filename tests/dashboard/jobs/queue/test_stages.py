"""The stages of a run: they follow the state of its row, in every phase of the engine."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, Evaluation, Job, MetricSeries, State, TrainingRun, User
from dashboard.presenters.stages import PHASES, STAGES, stages
from dashboard.templatetags.graftworks import state_word

WORDS = ["Waiting", "Starting", "Training", "Saving", "Evaluating", "Finished"]
# State, attempts, last completed step; then the current stage and its label.
ROWS = [
    (State.QUEUED, 0, 0, "waiting", "Waiting"),
    (State.QUEUED, 1, 5, "waiting", "Waiting"),
    (State.STARTING, 1, 0, "starting", "Starting"),
    (State.STARTING, 2, 5, "starting", "Starting"),
    (State.RUNNING, 1, 0, "training", "Training"),
    (State.RUNNING, 1, 5, "training", "Training"),
    (State.FINALIZING, 1, 5, "saving", "Saving"),
    (State.CANCELLING, 1, 0, "starting", "Stopping"),
    (State.CANCELLING, 1, 5, "training", "Stopping"),
    (State.INTERRUPTED, 1, 0, "starting", "Interrupted"),
    (State.INTERRUPTED, 1, 5, "training", "Interrupted"),
]
# State, attempts, last completed step; then the last stage and its mark.
ENDS = [
    (State.FAILED, 0, 0, "waiting", "is_broken"),
    (State.FAILED, 1, 0, "starting", "is_broken"),
    (State.FAILED, 1, 5, "training", "is_broken"),
    (State.CANCELLED, 0, 0, "waiting", "is_stopped"),
    (State.CANCELLED, 1, 5, "training", "is_stopped"),
]
SCORINGS = [
    (State.QUEUED, "Evaluation: waiting"),
    (State.STARTING, "Evaluation: starting"),
    (State.RUNNING, "Evaluating"),
    (State.FINALIZING, "Evaluation: saving"),
    (State.CANCELLING, "Evaluation: stopping"),
    (State.INTERRUPTED, "Evaluation: interrupted"),
]


def in_state(run: TrainingRun, attempt: int, step: int, **fields: object) -> TrainingRun:
    Job.objects.filter(pk=run.job_id).update(attempt=attempt, total_steps=10, step=step, **fields)
    if step:
        MetricSeries.objects.append(run, "train/loss", [(step, 1.0)])
    return TrainingRun.objects.select_related("job").get(pk=run.pk)


def current(run: TrainingRun, evaluation: Job | None = None) -> list[tuple[str, str]]:
    """Return the current stages with their labels."""
    steps = stages(run, evaluation)
    assert [step["label"] for step in steps if not step["is_current"]] == [
        word for word, step in zip(WORDS, steps, strict=True) if not step["is_current"]
    ]
    return [(name, step["label"]) for name, step in zip(STAGES, steps, strict=True) if step["is_current"]]


def scored_by(adapter: Adapter, state: State) -> Job:
    """Add an evaluation in this state to a finished run."""
    job = Evaluation.objects.submit(adapter, None)
    Job.objects.filter(pk=job.pk).update(state=state, phase="scoring", step=1, total_steps=4)
    return Job.objects.get(pk=job.pk)


@pytest.mark.parametrize(("state", "attempt", "step", "place", "word"), ROWS)
def test_the_current_stage_follows_the_state_in_every_phase(
    run: TrainingRun, state: State, attempt: int, step: int, place: str, word: str
) -> None:
    run = in_state(run, attempt, step, state=state)
    assert run.job
    for run.job.phase in ("", *PHASES):
        assert current(run) == [(place, word)]
    assert state_word(run.state, "train").startswith(word)


def test_the_tables_cover_every_state() -> None:
    ended = {State.SUCCEEDED, *(row[0] for row in ENDS)}
    assert {*State} == {row[0] for row in ROWS} | ended
    assert {*State} - ended == {state for state, _word in SCORINGS}


@pytest.mark.parametrize(("state", "attempt", "step", "place", "mark"), ENDS)
def test_a_failed_or_stopped_run_is_marked_at_its_last_stage(
    run: TrainingRun, state: State, attempt: int, step: int, place: str, mark: str
) -> None:
    run = in_state(run, attempt, step, phase="saving")
    run.outcome = state
    steps = dict(zip(STAGES, stages(run, None), strict=True))
    assert current(run) == []
    assert [name for name, one in steps.items() if one["is_broken"] or one["is_stopped"]] == [place]
    assert steps[place][mark]
    assert not steps["finished"]["is_done"]


@pytest.mark.parametrize(("outcome", "word"), [("succeeded", "Finished"), ("stopped_early", "Stopped early")])
def test_all_stages_of_a_successful_run_are_done(run: TrainingRun, outcome: str, word: str) -> None:
    run.end(outcome, step=5)
    steps = stages(run, None)
    assert all(step["is_done"] for step in steps)
    assert steps[-1]["label"] == word
    assert state_word(run.state, "train").startswith(word)


def test_a_draft_is_labelled(run: TrainingRun) -> None:
    run.job = None
    assert current(run) == [("waiting", "Draft")]


@pytest.mark.parametrize(("state", "word"), SCORINGS)
def test_the_evaluating_stage_follows_the_state_of_the_evaluation(
    adapter: Adapter, state: State, word: str
) -> None:
    job = scored_by(adapter, state)
    for job.phase in ("", *PHASES):
        assert current(adapter.run, job) == [("evaluating", word)]


def announced(client: Client, user: User, run: TrainingRun) -> str:
    """Return the text of the page's live region for screen readers."""
    client.force_login(user)
    piece = client.get(reverse("training-run-progress", args=[run.pk])).content.decode()
    return piece.split('data-announcement="')[1].split('"')[0]


@pytest.mark.parametrize(
    ("state", "phase", "step", "text"),
    [
        (State.RUNNING, "training", 5, "Training, 50 percent"),
        (State.RUNNING, "loading", 4, "Training, loading the base model, 40 percent"),
        (State.CANCELLING, "training", 5, "Stopping"),
    ],
)
def test_the_announcement_of_a_run(
    client: Client, vera: User, run: TrainingRun, state: State, phase: str, step: int, text: str
) -> None:
    run = in_state(run, 1, step, state=state, phase=phase)
    assert announced(client, vera, run) == text


@pytest.mark.parametrize(
    ("state", "text"),
    [(State.RUNNING, "Evaluating, 25 percent"), (State.QUEUED, "Evaluation: waiting"), (None, "Finished")],
)
def test_the_announcement_of_an_evaluation(
    client: Client, vera: User, adapter: Adapter, state: State | None, text: str
) -> None:
    if state:
        scored_by(adapter, state)
    assert announced(client, vera, adapter.run) == text
