"""Fixtures for finished runs: curves, adapters with real files, evaluations and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.cache import caches
from django.db import transaction
from django.test import Client
from pytest_django.plugin import DjangoDbBlocker

from dashboard.models import Adapter, ApiToken, Evaluation, Job, MetricSeries, Project, TrainingRun, User
from tests.conftest import finish
from tests.dashboard.routes import World, create_world

FILES = {
    "README.md": b"# Triage\n",
    "adapter_config.json": json.dumps({"base_model_name_or_path": "example/tiny", "r": 4}).encode(),
    "adapter_model.safetensors": bytes(range(256)) * 16,
    "run.json": b'{"format": 1}\n',
    "tokenizer.json": b"{}\n",
}


def succeed(run: TrainingRun, **measured: object) -> TrainingRun:
    """Finish a run with curves and costs, without training."""
    if run.job and not run.job.is_over:
        finish(run.job)
    MetricSeries.objects.append(run, "train/loss", [(step, 3.0 / step) for step in range(1, 11)])
    MetricSeries.objects.append(run, "validation/loss", [(5, 1.25), (10, 0.75)])
    run.end(
        "succeeded", step=10, measured={"wall_seconds": 65.0, "peak_memory_bytes": 700_000_000, **measured}
    )
    return run


def publish(run: TrainingRun, contents: dict[str, bytes] | None = None) -> Adapter:
    """Publish an adapter with a folder of small files that match their checksums."""
    contents = FILES if contents is None else contents
    folder = hashlib.sha256(repr((run.pk, sorted(contents.items()))).encode()).hexdigest()
    path = Path(settings.DATA_DIR) / "adapters" / folder
    path.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (path / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return Adapter.objects.publish(succeed(run), folder, digests, len(contents["adapter_model.safetensors"]))


def start_training(run: TrainingRun) -> Job:
    """Return the run's job after five of ten steps on a worker."""
    assert run.job is not None
    run.job.move("claim", attempt=1, worker="gpu@host")
    run.job.move("progress")
    run.job.update_progress(step=5, total_steps=10, phase="training", eta_seconds=60.0)
    return run.job


def evaluate(adapter: Adapter, base: float, tuned: float) -> None:
    """Record both evaluations of an adapter with these exact matches."""
    finish(Evaluation.objects.submit(adapter, None))
    for evaluation in adapter.run.evaluations.filter(metrics={}):
        is_base = evaluation.subject == Evaluation.Subject.BASE
        share, loss = (base, 2.5) if is_base else (tuned, 0.5)
        metrics = {"exact_match": share, "token_f1": share, "loss": loss}
        evaluation.record_result(200, metrics, [])


def make_checkpoint(job: Job, step: int, number: int = 1) -> Path:
    """Write a checkpoint's manifest and the files that it names."""
    folder = job.checkpoint_folder() / f"{number:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"step": step, "files": {"state.json": "00"}}))
    return folder


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Delete checkpoints, logs and parts of pages: the next test has rows with the same primary keys."""
    yield
    caches["rendered"].clear()
    for name in ("checkpoints", "logs"):
        shutil.rmtree(Path(settings.DATA_DIR) / name, ignore_errors=True)


@pytest.fixture
def api(token: str) -> Client:
    """Return a client with the project's token."""
    return Client(headers={"Authorization": f"Bearer {token}"})


def api_client(project: Project, user: User, **options: Any) -> Client:
    """Return a client with a new token of the user."""
    secret = ApiToken.issue(project, user, "tests", **options)[1]
    return Client(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def run_of_same_job(run: TrainingRun) -> TrainingRun:
    """A second run that trains in the job of `run`."""
    second = TrainingRun.objects.get(pk=run.pk)
    second.pk, second._state.adding, second.name = None, True, "The second"
    second.save()
    return second


@pytest.fixture
def adapter(run: TrainingRun) -> Adapter:
    """Return the published adapter of Ed's run, without a prepared download."""
    # After a rollback the next adapter has the same primary key, and so the same archive.
    shutil.rmtree(Path(settings.DATA_DIR) / "archives", ignore_errors=True)
    return publish(run)


@contextlib.contextmanager
def rolled_back(blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let several tests share what is created in the block; it is gone afterwards."""
    with blocker.unblock(), transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[World]:
    """Create one object of each kind for the tests of a module."""
    with rolled_back(django_db_blocker):
        yield create_world()
