"""The end of a training as a worker records it, and the same in a process that is killed at a chosen moment.

Such processes are forks of a server that has Django loaded and no database open: SQLite must not be carried
across a fork, and threads of the tests' process may have a connection. Knows nothing of pytest.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from unittest.mock import patch

import django
from django.apps import apps
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from tests.moments import Interruption, install
from workers.contract.events import ArmEnd, Artifact, Metrics

if not apps.ready:
    django.setup()

from dashboard.models import Job
from workers.supervision.recorders import TrainRecorder

SUCCEEDED = ArmEnd(arm=0, outcome="succeeded", step=10, summary={"train_loss": 1.0})
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__])


def make_artifact(folder: Path) -> Artifact:
    """Write an adapter of one tensor, as the engine does."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + b"\0\0\0\0"
    (folder / "arm-0").mkdir(parents=True)
    (folder / "arm-0" / "adapter_model.safetensors").write_bytes(weights)
    return Artifact(0, "arm-0", {"adapter_model.safetensors": hashlib.sha256(weights).hexdigest()})


def record_all(job: Job, folder: Path) -> None:
    """Record the events of a complete training, and finish the job."""
    recorder = TrainRecorder(job, folder)
    recorder.record(Metrics(0, 1, {"train/loss": 2.0}))
    recorder.record(make_artifact(folder))
    recorder.record(SUCCEEDED)
    recorder.finish()


def record_until(
    job: Job, folder: Path, interruption: Interruption, environment: dict[str, str]
) -> int | None:
    """Return the exit status of a process that recorded it all, negative after a signal."""
    # The server keeps the environment with which it starts.
    with patch.dict(os.environ, environment):
        process = _server.Process(target=_record_until, args=(job.pk, folder, interruption))
        process.start()
    process.join()
    return process.exitcode


def _record_until(job: int, folder: Path, interruption: Interruption) -> None:
    pass_moment = install(interruption, Path(settings.DATA_DIR))
    commit = BaseDatabaseWrapper.commit

    def commit_with_moments(wrapper: BaseDatabaseWrapper) -> None:
        pass_moment("before commit")
        commit(wrapper)
        pass_moment("after commit")

    BaseDatabaseWrapper.commit = commit_with_moments  # type: ignore[method-assign]
    record_all(Job.objects.get(pk=job), folder)
