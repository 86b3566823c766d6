"""The row of stages of a run: it names the state that the row has, and no other, whatever the engine does."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, Evaluation, Job, MetricSeries, State, TrainingRun, User
from dashboard.presenters.stages import PHASES, STAGES, announcement, stages
from dashboard.templatetags.graftworks import state_word

WORDS = ["Waiting", "Starting", "Training", "Saving", "Evaluating", "Finished"]
# State, attempts so far, the last step stored, and then the step that the row of stages is at and its word.
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
# How a row of stages that ended is marked, and where.
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


def standing(run: TrainingRun, attempt: int, step: int, **fields: object) -> TrainingRun:
    """The run with its row as it is in some state."""
    Job.objects.filter(pk=run.job_id).update(attempt=attempt, total_steps=10, step=step, **fields)
    if step:
        MetricSeries.objects.append(run, "train/loss", [(step, 1.0)])
    return TrainingRun.objects.select_related("job").get(pk=run.pk)


def current(run: TrainingRun, evaluation: Job | None = None) -> list[tuple[str, str]]:
    """The steps marked as the present ones, with their words."""
    steps = stages(run, evaluation)
    assert [step["label"] for step in steps if not step["is_current"]] == [
        word for word, step in zip(WORDS, steps, strict=True) if not step["is_current"]
    ]
    return [(name, step["label"]) for name, step in zip(STAGES, steps, strict=True) if step["is_current"]]


def scored_by(adapter: Adapter, state: State) -> Job:
    """The evaluation of a finished run, in some state."""
    job = Evaluation.objects.submit(adapter, None)
    Job.objects.filter(pk=job.pk).update(state=state, phase="scoring", step=1, total_steps=4)
    return Job.objects.get(pk=job.pk)


@pytest.mark.parametrize(("state", "attempt", "step", "place", "word"), ROWS)
def test_the_present_step_is_the_rows_own_state_in_every_phase(
    run: TrainingRun, state: State, attempt: int, step: int, place: str, word: str
) -> None:
    run = standing(run, attempt, step, state=state)
    assert run.job
    for run.job.phase in ("", *PHASES):
        assert current(run) == [(place, word)]
    assert state_word(run.state, "train").startswith(word)


def test_every_state_is_looked_at() -> None:
    ended = {State.SUCCEEDED, *(row[0] for row in ENDS)}
    assert {*State} == {row[0] for row in ROWS} | ended
    assert {*State} - ended == {state for state, _word in SCORINGS}


@pytest.mark.parametrize(("state", "attempt", "step", "place", "mark"), ENDS)
def test_a_run_that_ended_ill_is_marked_where_it_ended(
    run: TrainingRun, state: State, attempt: int, step: int, place: str, mark: str
) -> None:
    run = standing(run, attempt, step, phase="saving")
    run.outcome = state
    steps = dict(zip(STAGES, stages(run, None), strict=True))
    assert current(run) == []
    assert [name for name, one in steps.items() if one["is_broken"] or one["is_stopped"]] == [place]
    assert steps[place][mark]
    assert not steps["finished"]["is_done"]


@pytest.mark.parametrize(("outcome", "word"), [("succeeded", "Finished"), ("stopped_early", "Stopped early")])
def test_a_run_that_ended_well_has_all_steps_behind_it(run: TrainingRun, outcome: str, word: str) -> None:
    run.end(outcome, step=5)
    steps = stages(run, None)
    assert all(step["is_done"] for step in steps)
    assert steps[-1]["label"] == word
    assert state_word(run.state, "train").startswith(word)


def test_a_draft_is_called_one(run: TrainingRun) -> None:
    run.job = None
    assert current(run) == [("waiting", "Draft")]


@pytest.mark.parametrize(("state", "word"), SCORINGS)
def test_an_evaluation_is_said_to_work_only_while_it_does(adapter: Adapter, state: State, word: str) -> None:
    job = scored_by(adapter, state)
    for job.phase in ("", *PHASES):
        assert current(adapter.run, job) == [("evaluating", word)]


def spoken(client: Client, user: User, run: TrainingRun) -> str:
    """What the live region of the run's page tells those who hear it."""
    client.force_login(user)
    piece = client.get(reverse("training-run-progress", args=[run.pk])).content.decode()
    return piece.split('data-announcement="')[1].split('"')[0]


def test_who_hears_the_page_is_told_that_it_trains(client: Client, vera: User, run: TrainingRun) -> None:
    run = standing(run, 1, 5, state=State.RUNNING, phase="training")
    assert spoken(client, vera, run) == "Training, 50 percent"


def test_the_percent_of_loading_is_not_said_to_be_that_of_training(
    client: Client, vera: User, run: TrainingRun
) -> None:
    run = standing(run, 1, 4, state=State.RUNNING, phase="loading")
    assert spoken(client, vera, run) == "Training, loading the base model, 40 percent"


@pytest.mark.parametrize(
    ("state", "words"),
    [(State.RUNNING, "Evaluating, 25 percent"), (State.QUEUED, "Evaluation: waiting"), (None, "Finished")],
)
def test_who_hears_the_page_of_a_finished_run_never_hears_of_training(
    client: Client, vera: User, adapter: Adapter, state: State | None, words: str
) -> None:
    if state:
        scored_by(adapter, state)
    assert spoken(client, vera, adapter.run) == words


def test_a_stop_is_heard_and_not_how_far_it_had_got(client: Client, vera: User, run: TrainingRun) -> None:
    run = standing(run, 1, 5, state=State.CANCELLING, phase="training")
    assert spoken(client, vera, run) == "Stopping"
    assert announcement(stages(run, None), run.job) == "Stopping"
