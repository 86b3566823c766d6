"""A study's runs as a grid: one row for each arm, one column for each seed, and one for the learning rates.

Reads the rows that `Study.objects.with_facts` has fetched. Scores are hidden until the study is over, because
stopping at a favourable score would bias the result.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from django.utils import timezone

from dashboard.models import Job, State, Study, StudyArm, TrainingRun
from dashboard.models.evaluations.evaluation import adapter_evaluation
from dashboard.models.jobs.queue_forecast import QueueForecast, StartEstimate
from dashboard.models.operations.stalled_queue import StalledQueue, stalled_queue_of
from dashboard.models.studies.looks import open_arms
from dashboard.models.studies.plan import halvings
from dashboard.presenters.stages import time_left

PLANNED, LEFT_OUT, NOT_NEEDED = "planned", "left_out", "not_needed"
TRAINED, SCORED = "trained", "scored"
# Final states of a cell.
DONE = (LEFT_OUT, NOT_NEEDED, SCORED, State.FAILED, State.CANCELLED)
ACTIVE = (State.STARTING, State.RUNNING, State.FINALIZING)
# The share of a cell's progress that training accounts for; only the progress bar uses it.
TRAINED_SHARE = 0.8


@dataclass(frozen=True)
class Cell:
    """One arm with one seed. `kind` names the job that runs; `percent` is that of its present phase."""

    seed: int
    state: str
    run: TrainingRun | None = None
    kind: str = Job.Kind.TRAIN
    percent: int | None = None
    score: float | None = None

    @property
    def share(self) -> float:
        if self.state in DONE:
            return 1.0
        active = (self.percent or 0) / 100
        if self.kind == Job.Kind.EVALUATE or self.state == TRAINED:
            return TRAINED_SHARE + (1 - TRAINED_SHARE) * active
        return TRAINED_SHARE * active


@dataclass(frozen=True)
class Search:
    """An arm's search for its learning rate."""

    state: str
    rates: int = 0
    rung: int = 0
    rungs: int = 0
    percent: int | None = None
    chosen: float | None = None
    is_bracketed: bool = True


@dataclass(frozen=True)
class Row:
    """An arm with its cells."""

    arm: StudyArm
    search: Search | None
    cells: tuple[Cell, ...]

    @property
    def error(self) -> str:
        """Return the first error of its runs or its search; "" without one."""
        errors = [self.arm.error, *(cell.run.error for cell in self.cells if cell.run)]
        return next((error["message"] for error in errors if error), "")


@dataclass(frozen=True)
class Column:
    """A seed with its open jobs; the column of the learning rates has no seed."""

    seed: int | None
    jobs: tuple[Job, ...] = ()
    position: int | None = None
    start: StartEstimate | None = None

    @property
    def job(self) -> Job | None:
        """Return the running job, else the first."""
        return self.jobs[0] if self.jobs else None


@dataclass(frozen=True)
class Grid:
    """The values of the live region."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    stalled_queue: StalledQueue | None = None  # the reason why queued jobs do not start

    @property
    def total(self) -> int:
        return sum(cell.state != NOT_NEEDED for row in self.rows for cell in row.cells)

    @property
    def done(self) -> int:
        """Return the number of runs that have ended."""
        return sum(cell.state in DONE and cell.state != NOT_NEEDED for row in self.rows for cell in row.cells)

    @property
    def scored(self) -> int:
        return sum(cell.state == SCORED for row in self.rows for cell in row.cells)

    @property
    def percent(self) -> int:
        """Return the completed percent of all cells; running ones count in part."""
        shares = [cell.share for row in self.rows for cell in row.cells]
        return int(100 * sum(shares) / len(shares)) if shares else 0

    @property
    def training_left(self) -> float | None:
        """Return seconds until the last seed is trained, from a running training; None if unknown.

        As many jobs as run now are taken to run at a time.
        """
        if any(column.seed is None and column.jobs for column in self.columns):
            return None
        jobs = [job for column in self.columns for job in column.jobs]
        trainings = [job for job in jobs if job.kind == Job.Kind.TRAIN]
        waiting = sum(job.state == State.QUEUED for job in trainings)
        at_a_time = sum(job.state in ACTIVE for job in jobs)
        for job in trainings:
            left = time_left(job)
            if left is not None and job.started_at:
                elapsed = (timezone.now() - job.started_at).total_seconds()
                return left + math.ceil(waiting / max(1, at_a_time)) * (elapsed + left)
        return None


def grid_of(study: Study, *, with_starts: bool = False) -> Grid:
    """Return the grid; `with_starts` estimates starts from the queue while a job waits."""
    arms = list(study.arms.all())
    rows = tuple(
        Row(arm, search_of(study, arm), tuple(cell_of(study, arm, seed) for seed in study.seeds))
        for arm in arms
    )
    columns: list[Column] = []
    if study.learning_rates:
        columns.append(Column(None, open_jobs([run for arm in arms for run in arm.search_runs()])))
    for seed in study.seeds:
        runs = [run for arm in arms for run in arm.final_runs() if run.seed == seed]
        columns.append(Column(seed, open_jobs(runs)))
    waiting = [column.job for column in columns if column.job and column.job.state == State.QUEUED]
    queues = {job.queue for job in waiting} if with_starts else set()
    forecast = QueueForecast.read(queues)
    positions = forecast.positions
    placed = (
        dataclasses.replace(column, position=positions.get(job.pk), start=forecast.starts.get(job.pk))
        if (job := column.job)
        else column
        for column in columns
    )
    # All jobs of a study wait in the same queue.
    stalled = stalled_queue_of(waiting[0]) if waiting and with_starts else None
    return Grid(tuple(placed), rows, stalled)


def open_jobs(runs: list[TrainingRun]) -> tuple[Job, ...]:
    """Return the open jobs of these runs, running ones first."""
    jobs = {run.job_id: run.job for run in runs if run.job and not run.is_over}
    jobs |= {one.job_id: one.job for run in runs for one in run.evaluations.all() if one.job}
    open_ones = [job for job in jobs.values() if not job.is_over]
    return tuple(sorted(open_ones, key=lambda job: (job.state not in ACTIVE, job.pk)))


def cell_of(study: Study, arm: StudyArm, seed: int) -> Cell:
    """Return the state of an arm's run with a seed, its evaluation included."""
    run = next((run for run in arm.final_runs() if run.seed == seed), None)
    if run is None and (arm.verdict or (arm.is_reference and study.begun_seeds and not open_arms(study))):
        return Cell(seed, NOT_NEEDED)
    if run is None:
        return Cell(seed, LEFT_OUT if study.is_over or arm.is_lost else PLANNED)
    if run.outcome not in (TrainingRun.Outcome.SUCCEEDED, TrainingRun.Outcome.STOPPED_EARLY):
        return Cell(seed, run.state, run, percent=None if run.is_over else percent_of(run.job))
    newest = adapter_evaluation(run)
    # "Queued" would look as if the run had not been trained.
    if newest is None or newest.state == State.QUEUED:
        return Cell(seed, TRAINED, run)
    if newest.state == State.SUCCEEDED:
        return Cell(
            seed, SCORED, run, score=newest.metrics.get(study.metric) if study.scores_are_open else None
        )
    return Cell(seed, newest.state, run, Job.Kind.EVALUATE, percent_of(newest.job))


def percent_of(job: Job | None) -> int | None:
    return job.percent if job and job.state in ACTIVE and job.total_steps else None


def search_of(study: Study, arm: StudyArm) -> Search | None:
    """Return the state of an arm's search for a learning rate; None in a study without one."""
    if not study.learning_rates:
        return None
    runs = arm.search_runs()
    if arm.learning_rate is not None:
        return Search(
            SCORED,
            chosen=arm.learning_rate,
            is_bracketed=arm.is_bracketed,
        )
    if not runs:
        return Search(LEFT_OUT if study.is_over else PLANNED)
    rung = max(run.rung or 0 for run in runs)
    trials = [run for run in runs if run.rung == rung]
    current = next((run for run in trials if not run.is_over), trials[0])
    return Search(
        state=State.FAILED if arm.is_lost else current.state,
        rates=len(trials),
        rung=rung + 1,
        rungs=halvings(len(study.learning_rates)),
        percent=None if current.is_over else percent_of(current.job),
    )
