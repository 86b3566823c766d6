"""The invariant checks: every submitted job against its row, its history, its curves and its files.

Each `find_…` function returns its violations, one line each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from django.conf import settings

from dashboard.models import Adapter, Evaluation, Job, JobEvent, MetricSeries, Outbox, State, TrainingRun
from dashboard.models.jobs.job import MAX_FAILED_ATTEMPTS
from dashboard.models.jobs.job_state import MOVES, TERMINAL
from tests.chaos.storm import InjectedFault
from tests.chaos.workload import SubmittedJob
from workers.contract.errors import RunError
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.validation import plan_validation
from workers.supervision.publish import check_adapter

WITH_ADAPTER = ("succeeded", "stopped_early")
# Reported at each step; the validation loss only at some of them.
STEP_METRICS = (
    "train/loss",
    "train/token_accuracy",
    "train/learning_rate",
    "train/grad_norm",
    "train/tokens_per_second",
    "system/memory_bytes",
)
VALIDATION_LOSS = "validation/loss"


def find_wrong_ends(submitted: list[SubmittedJob], faults: Sequence[InjectedFault] = ()) -> list[str]:
    """Find submitted jobs that are missing or doubled, and jobs that did not end as they should."""
    violations = []
    for item in submitted:
        if not item.runs:
            continue
        jobs = list(Job.objects.filter(idempotency_key=item.key))
        if len(jobs) != 1:
            violations.append(f"{item.key}: {len(jobs)} jobs")
            continue
        (job,) = jobs
        runs = TrainingRun.objects.filter(job=job)
        if len(runs) != len(item.runs):
            violations.append(f"{item.key}: {len(runs)} runs instead of {len(item.runs)}")
        for run in runs:
            allowed = allowed_outcomes(item, run, faults)
            if run.state not in allowed and not used_up_attempts(job, faults):
                reason = f"{run.error}, stop {item.keep!r}"
                violations.append(
                    f"{item.key}: job {job.pk} {run.state}, allowed {sorted(allowed)} ({reason})"
                )
    failed = Job.objects.exclude(kind=Job.Kind.TRAIN).filter(state=State.FAILED)
    wrong = [job for job in failed if not used_up_attempts(job, faults)]
    wrong += Job.objects.exclude(state__in=TERMINAL)
    return violations + [f"job {job.pk} ({job.kind}) is {job.state}" for job in wrong]


def used_up_attempts(job: Job, faults: Sequence[InjectedFault]) -> bool:
    """Return whether faults hit the last three attempts before a step: then the job fails rightly."""
    hit = {attempt for fault in faults for pk, attempt in fault.held if pk == job.pk}
    last = {job.attempt - back for back in range(MAX_FAILED_ATTEMPTS)}
    return job.error_code == "worker_lost" and last <= hit


def allowed_outcomes(item: SubmittedJob, run: TrainingRun, faults: Sequence[InjectedFault]) -> set[str]:
    """Return the outcomes a run may have. Another run of a stopped job may have ended before."""
    allowed = item.allowed if run.pk == item.runs[0] else item.allowed | {"succeeded"}
    was_hit = any(pk == run.job_id for fault in faults for pk, _attempt in fault.held)
    if item.keep == "adapter" and not was_hit and read_steps(run):
        # After the first step there is an adapter to keep.
        return allowed - {"cancelled"}
    return allowed


def find_illegal_moves() -> list[str]:
    """Replay each job's history against the state machine."""
    violations = []
    for job in Job.objects.all():
        state, attempt, last = None, 0, 0
        for event in JobEvent.objects.filter(job=job).order_by("seq"):
            where = f"job {job.pk} event {event.seq} ({event.event})"
            if event.seq != last + 1:
                violations.append(f"{where}: follows {last}")
            last = event.seq
            if event.attempt < attempt:
                violations.append(f"{where}: written by attempt {event.attempt} after {attempt} had begun")
            if event.event == "claim" and event.attempt != attempt + 1:
                violations.append(f"{where}: claimed as attempt {event.attempt} after {attempt}")
            attempt = max(attempt, event.attempt)
            if event.event in MOVES:
                sources, target = MOVES[event.event]
                if event.from_state != state or state not in sources or event.to_state != target:
                    violations.append(f"{where}: {state} -> {event.from_state} -> {event.to_state}")
                state = State(event.to_state)
            elif event.event == "submit":
                state = State.QUEUED
        if state != job.state or attempt != job.attempt:
            violations.append(
                f"job {job.pk}: history ends {state}/{attempt}, row says {job.state}/{job.attempt}"
            )
    return violations


def find_wrong_adapters() -> list[str]:
    """Find runs without their one adapter, and adapters with missing or damaged files."""
    violations = []
    counts = Counter(Adapter.objects.values_list("run_id", flat=True))
    for run in TrainingRun.objects.exclude(job=None):
        if counts[run.pk] != (run.outcome in WITH_ADAPTER):
            violations.append(f"run {run.pk} ({run.outcome}) has {counts[run.pk]} adapters")
    for adapter in Adapter.objects.all():
        try:
            check_adapter(adapter.path(), adapter.files)
        except (OSError, RunError) as error:
            violations.append(f"adapter {adapter.pk}: {error}")
    return violations


def find_unevaluated() -> list[str]:
    """Find adapters without an evaluation: it is submitted together with the adapter's row."""
    evaluated = Evaluation.objects.exclude(adapter=None).values("adapter")
    return [f"adapter {adapter.pk}" for adapter in Adapter.objects.exclude(pk__in=evaluated)]


def read_steps(run: TrainingRun, name: str = "train/loss") -> list[int]:
    """Return the steps of a curve in stored order."""
    series = MetricSeries.objects.filter(run=run, name=name).first()
    return [int(step) for step, _value in series.points()] if series else []


def find_wrong_curves() -> list[str]:
    """Find curves with missing or doubled steps, or with steps after the run's last one."""
    violations = []
    for run in TrainingRun.objects.exclude(job=None):
        is_complete = run.outcome == "succeeded"
        # A run that was stopped keeps the points after its best step.
        last = run.total_steps if is_complete else max(len(read_steps(run)), run.ended_step or 0)
        expected = {name: list(range(1, last + 1)) for name in STEP_METRICS}
        validations = validation_steps(run)
        if not is_complete:
            # A stop may come between the last step and its validation.
            before = sum(step < last for step in validations)
            validations = validations[: max(before, len(read_steps(run, VALIDATION_LOSS)))]
        for name, right in {**expected, VALIDATION_LOSS: validations}.items():
            steps = read_steps(run, name)
            if steps != right:
                missing = sorted(set(right) - set(steps))[:5]
                violations.append(
                    f"run {run.pk}, {name}: {len(steps)} points instead of {len(right)}, missing {missing}"
                )
    return violations


def validation_steps(run: TrainingRun) -> list[int]:
    """Return the steps after which the engine validates."""
    splits = run.dataset_version.splits
    drawn = min(Hyperparameters(**run.hyperparameters).rows_per_step, splits["train"])
    return list(plan_validation(run.total_steps, run.total_steps * drawn, splits["validation"]).steps)


def find_leftovers() -> list[str]:
    """Find temporary folders and checkpoints that no job will read again."""
    data = Path(settings.DATA_DIR)
    left = [str(path.relative_to(data)) for path in (data / "work").glob("*")]
    for folder in (data / "checkpoints").glob("job-*"):
        job = Job.objects.filter(pk=int(folder.name.removeprefix("job-"))).first()
        if job is None or not job.keeps_checkpoint:
            left.append(str(folder.relative_to(data)))
    return left


def count_unadopted() -> int:
    """Count published folders without a row: harmless, and deleted after a day."""
    known = set(Adapter.objects.values_list("folder", flat=True))
    return sum(path.name not in known for path in (Path(settings.DATA_DIR) / "adapters").glob("*"))


def find_unsent() -> list[str]:
    """Find unsent wake-ups of jobs that wait."""
    return [f"wake-up {entry.pk}" for entry in Outbox.objects.filter(sent_at=None, job__state="queued")]


def recovery_times(faults: list[InjectedFault], role: str, *, paused: bool = False) -> list[float]:
    """Return the seconds from each kill (or pause) of the role to the same job training again."""
    seconds = []
    for fault in faults:
        if fault.role != role or bool(fault.seconds) != paused:
            continue
        for job, attempt in fault.held:
            again = JobEvent.objects.filter(
                job=job, attempt=attempt + 1, event="message", text__contains="training rows. "
            ).first()
            if again:
                seconds.append(again.created_at.timestamp() - fault.at)
    return seconds


def submit_times_in_silence(
    faults: list[InjectedFault], submit_times: list[tuple[float, float]]
) -> list[float]:
    """Return the seconds of the submits that began while the broker was silent."""
    silences = [(fault.at, fault.at + fault.seconds) for fault in faults if fault.role == "REDIS_URL"]
    return [seconds for at, seconds in submit_times if any(begin <= at <= end for begin, end in silences)]


def stop_times() -> list[float]:
    """Return the seconds from each request to stop a running job to its end."""
    seconds = []
    for request in JobEvent.objects.filter(event="cancel"):
        ended = JobEvent.objects.filter(job=request.job_id, event="stopped", seq__gt=request.seq).first()
        if ended:
            seconds.append((ended.created_at - request.created_at).total_seconds())
    return seconds
