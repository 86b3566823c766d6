"""The workload: start trainings over the API, stop some, resume some, and record each answer.

A request without an answer is repeated with the same Idempotency-Key, as a client would.
"""

from __future__ import annotations

import http.client
import itertools
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from django.db import InterfaceError, OperationalError, close_old_connections, transaction

from dashboard.models import BaseModel, Dataset, Job, TargetModuleConfig, TrainingRun, User
from dashboard.models.training.forecast import forecast_run
from tests.e2e.installation import Answer, Api
from workers.contract.hyperparameters import Hyperparameters

Result = TypeVar("Result")
MAX_WAITING = 20
RETRY_SECONDS = 1.0
ARMS_SHARE, REPEATED_SHARE, STOPPED_SHARE = 0.1, 0.1, 0.1
UNAVAILABLE = (429, 500, 502, 503, 504)


@dataclass
class SubmittedJob:
    """An acknowledged training job and the outcomes that its first run may have."""

    number: int
    key: str
    runs: list[int] = field(default_factory=list)
    keep: str | None = None  # None: not stopped
    allowed: set[str] = field(default_factory=lambda: {"succeeded"})


@dataclass
class Workload:
    """Submits, stops and resumes jobs until all are submitted or `stopped` is set.

    While `needs_more` returns True, it submits further ones: on a fast machine all jobs may end before the
    last faults, which need a running job.
    """

    api: Api
    dataset: int
    jobs: int
    seed: int
    needs_more: Callable[[], bool] = lambda: False
    submitted: list[SubmittedJob] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    submit_times: list[tuple[float, float]] = field(
        default_factory=list
    )  # when, and how many seconds it took
    stopped: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def submit_all(self) -> None:
        """Submit one job after another, at most MAX_WAITING ahead of the workers; further ones not ahead."""
        generator = random.Random(self.seed + 1)
        for number in itertools.count():
            most = MAX_WAITING if number < self.jobs else 1
            while not self.stopped.is_set() and self._count_waiting() >= most:
                self.stopped.wait(0.5)
            if self.stopped.is_set() or (number >= self.jobs and not self.needs_more()):
                break
            job = SubmittedJob(number, f"chaos-{self.seed}-{number}")
            arms = [self._hyperparameters(generator) for _arm in range(generator.randint(2, 4))]
            if generator.random() < ARMS_SHARE:
                # The API starts several runs in one job only through a study.
                job.runs = retry_on_outage(lambda job=job, arms=arms: submit_arms(self.dataset, job, arms))
            else:
                self._submit(job, arms[0], repeat=generator.random() < REPEATED_SHARE)
            self.submitted.append(job)
            if generator.random() < STOPPED_SHARE:
                keep, delay = generator.choice(["", "adapter", "checkpoint"]), generator.uniform(0, 15)
                threading.Thread(target=self._stop, args=(job, keep, delay), daemon=True).start()
        self.done.set()

    def _hyperparameters(self, generator: random.Random) -> dict[str, object]:
        return {
            "max_steps": generator.randint(20, 200),
            "learning_rate": 2e-4,
            "per_device_train_batch_size": 2,
            "max_length": 64,
            "r": generator.choice([2, 4, 8]),
            "seed": generator.randint(0, 1000),
        }

    def _count_waiting(self) -> int:
        return retry_on_outage(lambda: Job.objects.filter(kind="train", state="queued").count())

    def _submit(self, job: SubmittedJob, hyperparameters: dict[str, object], *, repeat: bool) -> None:
        body = {
            "name": f"Run {job.number}",
            "dataset": self.dataset,
            "target_module_config": "efficient",
            "hyperparameters": hyperparameters,
        }
        for _request in range(1 + repeat):
            answer = self.request("POST", "/runs", body, job.key)
            if answer.status != 202 or job.runs not in ([], [answer.json()["id"]]):
                self._record_violation(f"submit {job.key}", answer)
                return
            job.runs = [answer.json()["id"]]

    def _stop(self, job: SubmittedJob, keep: str, delay: float) -> None:
        """Stop the job some time after its training has started."""
        run = job.runs[0] if job.runs else 0
        while run and not self.stopped.wait(0.5):
            state = self.request("GET", f"/runs/{run}").json()["state"]
            if state in ("running", "succeeded", "failed", "cancelled"):
                break
        self.stopped.wait(delay)
        job.keep = keep
        job.allowed = {"succeeded", "cancelled", "stopped_early"}
        answer = self.request("POST", f"/runs/{run}/cancel", {"keep": keep} if keep else None)
        if answer.status not in (202, 409):
            self._record_violation(f"stop {job.key} ({keep})", answer)
        elif answer.status == 202 and keep != "adapter":
            job.allowed = {"cancelled"}
            if keep == "checkpoint" and not self.stopped.wait(20):
                self._resume(job, run)

    def _resume(self, job: SubmittedJob, run: int) -> None:
        answer = self.request("POST", f"/runs/{run}/resume")
        if answer.status == 202:
            job.allowed = {"succeeded"}
        elif answer.status == 409:
            # The first answer to a repeated request may have been lost with the web server.
            job.allowed = {"cancelled", "succeeded"}
        elif answer.status != 404:
            self._record_violation(f"resume {job.key}", answer)

    def _record_violation(self, request: str, answer: Answer) -> None:
        self.violations.append(f"{request}: {answer.status} {answer.body[:200]!r}")

    def request(self, method: str, path: str, payload: object = None, key: str = "") -> Answer:
        """Return the answer to a request, repeated while the web server is away."""
        headers = {"Idempotency_Key": key} if key else {}
        while True:
            began = time.time()
            try:
                answer = self.api.call(method, path, payload, **headers)
                if answer.status not in UNAVAILABLE:
                    if key:
                        self.submit_times.append((began, time.time() - began))
                    return answer
                if answer.status == 500:
                    self.violations.append(f"{method} {path}: 500")
            except (OSError, http.client.HTTPException):
                pass
            if self.stopped.wait(RETRY_SECONDS):
                return Answer(0, {}, b'{"state": "unknown"}')


@transaction.atomic
def submit_arms(dataset: int, job: SubmittedJob, arms: list[dict[str, object]]) -> list[int]:
    """Submit one job with a run per arm, and return the runs' keys."""
    data = Dataset.objects.get(pk=dataset)
    version, project, user = data.newest_ready(), data.project, User.objects.earliest("pk")
    assert version is not None
    runs = []
    for place, values in enumerate(arms):
        run = TrainingRun(
            project=project,
            created_by=user,
            name=f"Run {job.number} arm {place}",
            dataset_version=version,
            base_model=BaseModel.objects.get(source=BaseModel.Source.BUNDLED),
            target_module_config=TargetModuleConfig.objects.get(slug="efficient"),
        )
        run.freeze(Hyperparameters(**values))  # type: ignore[arg-type]
        run.forecast = forecast_run(run)
        runs.append(run)
    specs = {"specs": [run.spec for run in runs]}
    row = Job.objects.submit(Job.Kind.TRAIN, specs, project=project, by=user, idempotency_key=job.key)
    for run in runs:
        run.job = row
        run.save()
    return [run.pk for run in runs]


def retry_on_outage(query: Callable[[], Result]) -> Result:
    """Return the result of a query, repeated until the database is there and unlocked."""
    while True:
        try:
            return query()
        except (OperationalError, InterfaceError):
            close_old_connections()
            time.sleep(1)
