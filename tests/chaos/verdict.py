"""What the storm left: every acknowledged job against its row, its history, its curve and its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from django.conf import settings

from dashboard.models import Adapter, Evaluation, Job, JobEvent, MetricSeries, Outbox, State, TrainingRun
from dashboard.models.jobs.job import MAX_FAILED_ATTEMPTS
from dashboard.models.jobs.job_state import MOVES, TERMINAL
from tests.chaos.storm import Hit
from tests.chaos.work import Asked
from workers.contract.errors import RunError
from workers.forecasting.workload import VALIDATIONS_PER_RUN
from workers.supervision.publish import check_adapter

KEPT = ("succeeded", "stopped_early")
# What the engine tells of each step, in one line; the held-out loss comes at some of them.
EACH_STEP = (
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/tokens_per_second",
    "system/memory_bytes",
)
HELD_OUT = "validation/loss"


def was_worn_out(job: Job, hits: Sequence[Hit]) -> bool:
    """Whether the storm itself hit its last three attempts before a step: then giving up is the right end."""
    hit = {attempt for blow in hits for pk, attempt in blow.held if pk == job.pk}
    last = {job.attempt - back for back in range(MAX_FAILED_ATTEMPTS)}
    return job.error_code == "worker_lost" and last <= hit


def wrong_ends(asked: list[Asked], hits: Sequence[Hit] = ()) -> list[str]:
    """Acknowledged jobs that are missing or did not end as they should."""
    found = []
    for one in asked:
        jobs = list(Job.objects.filter(idempotency_key=one.key))
        if not one.runs:
            continue
        if len(jobs) != 1:
            found.append(f"{one.key}: {len(jobs)} jobs")
            continue
        for run in TrainingRun.objects.filter(job=jobs[0]):
            right = right_ends(one, run, hits)
            if run.state not in right and not was_worn_out(jobs[0], hits):
                why = f"{run.error}, stop {one.keep!r}"
                found.append(f"{one.key}: job {jobs[0].pk} {run.state}, right is {sorted(right)} ({why})")
        if jobs[0].training_runs.count() != len(one.runs):
            found.append(f"{one.key}: {jobs[0].training_runs.count()} runs instead of {len(one.runs)}")
    others = Job.objects.exclude(kind=Job.Kind.TRAIN).filter(state=State.FAILED)
    unwell = [job for job in others if not was_worn_out(job, hits)]
    unwell += Job.objects.exclude(state__in=TERMINAL)
    return found + [f"job {job.pk} ({job.kind}) is {job.state}" for job in unwell]


def right_ends(one: Asked, run: TrainingRun, hits: Sequence[Hit]) -> set[str]:
    """How that run may have ended: a stop is for the run that it names, and none of its job's other arms."""
    if run.pk != one.runs[0]:
        return {"succeeded"}
    was_hit = any(pk == run.job_id for blow in hits for pk, _attempt in blow.held)
    if one.keep == "adapter" and not was_hit and curve(run):
        # It had learned something, so something was to be kept.
        return one.right - {"cancelled"}
    return one.right


def illegal_moves() -> list[str]:
    """Every history walked against the table of moves."""
    found = []
    for job in Job.objects.all():
        state, attempt, last = None, 0, 0
        for event in JobEvent.objects.filter(job=job).order_by("seq"):
            where = f"job {job.pk} event {event.seq} ({event.event})"
            if event.seq != last + 1:
                found.append(f"{where}: follows {last}")
            last = event.seq
            if event.attempt < attempt:
                found.append(f"{where}: written by attempt {event.attempt} after {attempt} had begun")
            if event.event == "claim" and event.attempt != attempt + 1:
                found.append(f"{where}: claimed as attempt {event.attempt} after {attempt}")
            attempt = max(attempt, event.attempt)
            if event.event in MOVES:
                sources, target = MOVES[event.event]
                if event.from_state != state or state not in sources or event.to_state != target:
                    found.append(f"{where}: {state} -> {event.from_state} -> {event.to_state}")
                state = State(event.to_state)
            elif event.event == "submit":
                state = State.QUEUED
        if state != job.state or attempt != job.attempt:
            found.append(f"job {job.pk}: history ends {state}/{attempt}, row says {job.state}/{job.attempt}")
    return found


def adapter_faults() -> list[str]:
    """Runs without their one adapter, adapters without their whole files."""
    found = []
    counts = Counter(Adapter.objects.values_list("run_id", flat=True))
    for run in TrainingRun.objects.exclude(job=None):
        wanted = 1 if run.outcome in KEPT else 0
        if counts[run.pk] != wanted:
            found.append(f"run {run.pk} ({run.outcome}) has {counts[run.pk]} adapters")
    for adapter in Adapter.objects.all():
        try:
            check_adapter(adapter.path(), adapter.files)
        except (OSError, RunError) as error:
            found.append(f"adapter {adapter.pk}: {error}")
    return found


def unscored() -> list[str]:
    """Adapters for which no evaluation was ever asked for: it is to come with the adapter's row."""
    never = Adapter.objects.exclude(pk__in=Evaluation.objects.exclude(adapter=None).values("adapter"))
    return [f"adapter {adapter.pk}" for adapter in never]


def curve(run: TrainingRun, name: str = "train/loss") -> list[int]:
    """The steps of one of its curves, in the order in which they are kept."""
    series = MetricSeries.objects.filter(run=run, name=name).first()
    return [int(step) for step, _value in series.points()] if series else []


def curve_faults() -> list[str]:
    """Each step stands once in each curve of its run, without a gap; who came to the end has all, no more."""
    found = []
    for run in TrainingRun.objects.exclude(job=None):
        # One that ended early keeps its best, and the steps after it stay in its curves.
        is_whole = run.outcome == "succeeded"
        last = run.total_steps if is_whole else max(len(curve(run)), run.ended_step or 0)
        for name in EACH_STEP:
            found += _faults(run, name, list(range(1, last + 1)))
        due = held_out_steps(run.total_steps)
        if not is_whole:
            # A stop may come between the last step and its held-out loss.
            before = sum(step < last for step in due)
            due = due[: max(before, len(curve(run, HELD_OUT)))]
        found += _faults(run, HELD_OUT, due)
    return found


def _faults(run: TrainingRun, name: str, right: list[int]) -> list[str]:
    steps = curve(run, name)
    if steps == right:
        return []
    missing = sorted(set(right) - set(steps))[:5]
    return [f"run {run.pk}, {name}: {len(steps)} points, right are {len(right)}, missing {missing}"]


def held_out_steps(total: int) -> list[int]:
    """After which steps the engine measures the held-out loss of a run that says nothing about it.

    After none at first: that is the base model's.
    """
    every = max(1, round(total / VALIDATIONS_PER_RUN))
    return [step for step in range(total + 1) if step % every == 0 or step == total]


def leftovers() -> list[str]:
    """Temporary folders and checkpoints that nobody will read again."""
    data = Path(settings.DATA_DIR)
    left = [str(path.relative_to(data)) for path in (data / "work").glob("*")]
    for folder in (data / "checkpoints").glob("job-*"):
        job = Job.objects.filter(pk=int(folder.name.removeprefix("job-"))).first()
        if job is None or not job.keeps_checkpoint:
            left.append(str(folder.relative_to(data)))
    return left


def unadopted() -> list[str]:
    """Published folders without a row: harmless, and removed after a day."""
    known = set(Adapter.objects.values_list("folder", flat=True))
    return [path.name for path in (Path(settings.DATA_DIR) / "adapters").glob("*") if path.name not in known]


def unsent() -> list[str]:
    """Wake-ups that the dispatcher still holds for jobs that wait."""
    return [f"wake-up {entry.pk}" for entry in Outbox.objects.filter(sent_at=None, job__state="queued")]


def recoveries(hits: list[Hit], role: str, *, paused: bool = False) -> list[float]:
    """Seconds from each kill (or pause) of a process of that role to the same job training again."""
    found = []
    for hit in hits:
        if hit.role != role or bool(hit.seconds) != paused:
            continue
        for job, attempt in hit.held:
            again = JobEvent.objects.filter(
                job=job, attempt=attempt + 1, event="message", text__contains="rows to draw from"
            ).first()
            if again:
                found.append(again.created_at.timestamp() - hit.at)
    return found


def during(hits: list[Hit], submitted: list[tuple[float, float]]) -> list[float]:
    """How long those submits took that fell into a silence of the broker."""
    silent = [(hit.at, hit.at + hit.seconds) for hit in hits if hit.role == "REDIS_URL"]
    return [seconds for at, seconds in submitted if any(begin <= at <= end for begin, end in silent)]


def stop_times() -> list[float]:
    """Seconds from each request to stop a working job to its end."""
    seconds = []
    for asked in JobEvent.objects.filter(event="cancel"):
        ended = JobEvent.objects.filter(job=asked.job_id, event="stopped", seq__gt=asked.seq).first()
        if ended:
            seconds.append((ended.created_at - asked.created_at).total_seconds())
    return seconds
