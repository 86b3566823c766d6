"""The people of the storm: they start trainings over the API, stop some, resume some, and note each answer.

An answer that did not arrive is asked for again with the same Idempotency-Key, as a client would.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from django.db import InterfaceError, OperationalError, close_old_connections, transaction

from dashboard.models import BaseModel, Dataset, Job, TargetModuleConfig, TrainingRun, User
from tests.e2e.installation import Answer, Api
from workers.contract.hyperparameters import Hyperparameters

Found = TypeVar("Found")
WAITING_AT_MOST = 20
RETRY_SECONDS = 1.0
ARMS_SHARE, REPEATED_SHARE, STOPPED_SHARE = 0.1, 0.1, 0.1
BUSY = (429, 500, 502, 503, 504)


@dataclass
class Asked:
    """One training job as people know it: what was acknowledged, which ends of its first run are right."""

    number: int
    key: str
    runs: list[int] = field(default_factory=list)
    keep: str | None = None  # None: nobody stopped it
    right: set[str] = field(default_factory=lambda: {"succeeded"})


@dataclass
class Work:
    """Submits, stops and resumes until all jobs are asked for."""

    api: Api
    dataset: int
    jobs: int
    seed: int
    asked: list[Asked] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    submitted: list[tuple[float, float]] = field(default_factory=list)  # when, and how many seconds it took
    over: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def submit_all(self) -> None:
        """One after another, as long as not too many wait."""
        dice = random.Random(self.seed + 1)
        for number in range(self.jobs):
            while not self.over.is_set() and self._waiting() >= WAITING_AT_MOST:
                self.over.wait(0.5)
            if self.over.is_set():
                break
            one = Asked(number, f"chaos-{self.seed}-{number}")
            hyper = [self._hyper(dice) for _arm in range(dice.randint(2, 4))]
            if dice.random() < ARMS_SHARE:
                self._submit_arms(one, hyper)
            else:
                self._submit(one, hyper[0], repeat=dice.random() < REPEATED_SHARE)
            self.asked.append(one)
            if dice.random() < STOPPED_SHARE:
                keep, wait = dice.choice(["", "adapter", "checkpoint"]), dice.uniform(0, 15)
                threading.Thread(target=self._stop, args=(one, keep, wait), daemon=True).start()
        self.done.set()

    def _hyper(self, dice: random.Random) -> dict[str, object]:
        return {
            "max_steps": dice.randint(20, 200),
            "per_device_train_batch_size": 2,
            "max_length": 64,
            "r": dice.choice([2, 4, 8]),
            "seed": dice.randint(0, 1000),
        }

    def _waiting(self) -> int:
        return patiently(lambda: Job.objects.filter(kind="train", state="queued").count())

    def _submit(self, one: Asked, hyper: dict[str, object], *, repeat: bool) -> None:
        body = {
            "name": f"Run {one.number}",
            "dataset": self.dataset,
            "target_module_config": "efficient",
            "hyperparameters": hyper,
        }
        first = self.insist("POST", "/runs", body, one.key)
        if first.status != 202:
            self.complaints.append(f"submit {one.key}: {first.status} {first.body[:200]!r}")
            return
        one.runs = [first.json()["id"]]
        if repeat:
            again = self.insist("POST", "/runs", body, one.key)
            if again.status != 202 or again.json()["id"] != one.runs[0]:
                self.complaints.append(f"repeated {one.key}: {again.status} {again.body[:200]!r}")

    def _submit_arms(self, one: Asked, hyper: list[dict[str, object]]) -> None:
        """No page starts several arms in one job yet, so these come from the model layer."""

        def launch() -> list[int]:
            with transaction.atomic():
                return launch_arms(self.dataset, one, hyper)

        one.runs = patiently(launch)

    def _stop(self, one: Asked, keep: str, wait: float) -> None:
        """Some time after it has begun to train."""
        run = one.runs[0] if one.runs else 0
        while run and not self.over.wait(0.5):
            state = self.insist("GET", f"/runs/{run}").json()["state"]
            if state in ("running", "succeeded", "failed", "cancelled"):
                break
        self.over.wait(wait)
        one.keep = keep
        one.right = {"succeeded", "cancelled", "stopped_early"}
        answer = self.insist("POST", f"/runs/{run}/cancel", {"keep": keep} if keep else None)
        if answer.status not in (202, 409):
            self.complaints.append(f"stop {one.key} ({keep}): {answer.status} {answer.body[:200]!r}")
        elif answer.status == 202 and keep != "adapter":
            one.right = {"cancelled"}
            if keep == "checkpoint" and not self.over.wait(20):
                self._resume(one, run)

    def _resume(self, one: Asked, run: int) -> None:
        answer = self.insist("POST", f"/runs/{run}/resume")
        if answer.status == 202:
            one.right = {"succeeded"}
        elif answer.status == 409:
            # The first answer to a repeated request may have been lost with the web server.
            one.right = {"cancelled", "succeeded"}
        elif answer.status != 404:
            self.complaints.append(f"resume {one.key}: {answer.status} {answer.body[:200]!r}")

    def insist(self, method: str, path: str, payload: object = None, key: str = "") -> Answer:
        """The answer to a request, however often the web server dies in between."""
        headers = {"Idempotency_Key": key} if key else {}
        while True:
            asked = time.time()
            try:
                answer = self.api.call(method, path, payload, **headers)
                if answer.status not in BUSY:
                    if key:
                        self.submitted.append((asked, time.time() - asked))
                    return answer
                if answer.status == 500:
                    self.complaints.append(f"{method} {path}: 500")
            except (OSError, http.client.HTTPException):
                pass
            if self.over.wait(RETRY_SECONDS):
                return Answer(0, {}, b'{"state": "unknown"}')


def launch_arms(dataset: int, one: Asked, hyper: list[dict[str, object]]) -> list[int]:
    """One job with several runs; call inside a transaction."""
    data = Dataset.objects.get(pk=dataset)
    version, project, by = data.newest_ready(), data.project, User.objects.earliest("pk")
    assert version is not None
    runs = []
    for place, values in enumerate(hyper):
        run = TrainingRun(
            project=project,
            created_by=by,
            name=f"Run {one.number} arm {place}",
            dataset_version=version,
            base_model=BaseModel.objects.get(source=BaseModel.Source.BUNDLED),
            target_module_config=TargetModuleConfig.objects.get(slug="efficient"),
        )
        run.freeze(Hyperparameters(**values))  # type: ignore[arg-type]
        runs.append(run)
    specs = {"specs": [run.spec for run in runs]}
    job = Job.objects.submit(Job.Kind.TRAIN, specs, project=project, by=by, idempotency_key=one.key)
    for run in runs:
        run.job = job
        run.save()
    return [run.pk for run in runs]


def patiently(work: Callable[[], Found]) -> Found:
    """What database work answers, tried again until the database is there and unlocked."""
    while True:
        try:
            return work()
        except (OperationalError, InterfaceError):
            close_old_connections()
            time.sleep(1)
