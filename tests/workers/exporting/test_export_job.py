"""An export from its row to its file, with a real engine."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from django.conf import settings
from safetensors.numpy import save_file

from dashboard.models import (
    Adapter,
    BaseModel,
    Dataset,
    Export,
    Job,
    Project,
    Publication,
    State,
    TrainingRun,
    User,
)
from tests.conftest import make_run
from tests.workers.conftest import claim, run_script, run_until
from workers.supervision import recorders

pytestmark = pytest.mark.django_db(transaction=True)
WorkOff = Callable[[str], Job]


@pytest.fixture
def adapter(project: Project, ed: User, real_base: BaseModel, dataset: Dataset, tiny_folder: Path) -> Adapter:
    """An adapter of the attention output of the tiny model, as PEFT saves it."""
    path = Path(settings.DATA_DIR) / "adapters" / ("ef" * 32)
    path.mkdir(parents=True, exist_ok=True)
    for file in tiny_folder.glob("tokenizer*"):
        shutil.copy(file, path)
    values = np.ones((4, 32), np.float32)
    module = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}.weight"
    halves = {"A": values, "B": values.T.copy()}
    tensors = {module.format(layer, half): halves[half] for layer in range(2) for half in halves}
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
    (path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["o_proj"]}))
    files = dict.fromkeys((file.name for file in path.iterdir()), "ef" * 32)
    return Adapter.objects.publish(make_run(project, dataset, real_base, by=ed), path.name, files, 10)


def test_exports_are_published_stopped_and_taken_over(adapter: Adapter, ed: User, work_off: WorkOff) -> None:
    folder = Path(settings.DATA_DIR) / "exports"
    others = {path.name for path in folder.iterdir()} if folder.exists() else set()
    export = Export.objects.start(adapter, Export.Format.BFLOAT16, ed)
    assert work_off("cpu").state == State.SUCCEEDED
    export = Export.objects.select_related("job").get(pk=export.pk)
    assert export.is_finished
    content = export.path().read_bytes()
    assert (export.size_bytes, export.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    names = zipfile.ZipFile(export.path()).namelist()
    assert "Triage-v1-bfloat16/model.safetensors" in names
    assert Publication.objects.filter(kind=Publication.Kind.EXPORT, folder=export.folder).exists()
    events = list(export.job.events.order_by("seq").values_list("to_state", flat=True))
    assert events[-3:] == [State.RUNNING, State.FINALIZING, State.SUCCEEDED]

    stopped = Export.objects.start(adapter, Export.Format.FLOAT32, ed)
    job = claim("cpu")
    assert job.pk == stopped.job_id
    began = lambda: Job.objects.get(pk=job.pk).state == State.RUNNING  # noqa: E731
    ended = run_until(job, began, lambda: Job.objects.get(pk=job.pk).request_cancel(ed))
    assert ended.state == State.CANCELLED
    assert not Export.objects.get(pk=stopped.pk).folder
    assert {path.name for path in folder.iterdir()} - others == {export.folder}


FILE = """
import hashlib, pathlib
folder = pathlib.Path(sys.argv[-1]) / "export"
folder.mkdir()
(folder / "x.gguf").write_bytes(b"GGUF")
digest = hashlib.sha256(b"GGUF").hexdigest()
emit("Progress", phase="writing", step=1, total=2)
"""
REPORT = """
emit("Result", values={"files": {"x.gguf": {"sha256": digest, "bytes": 4}}})
emit("Finished", reason="done")
"""


@pytest.fixture
def waiting(run: TrainingRun, ed: User) -> Export:
    """A queued export of an adapter without files."""
    files = {"adapter_model.safetensors": "cd" * 32}
    return Export.objects.start(Adapter.objects.publish(run, "ab" * 32, files, 10), "gguf-f16", ed)


def test_a_changed_file_is_not_published(waiting: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    change = '(folder / "x.gguf").write_bytes(b"GGUX")\n'
    ended = run_script(FILE + change + REPORT, claim("cpu"), monkeypatch)
    assert (ended.state, ended.error_code) == (State.FAILED, "publish_failed")
    assert not Export.objects.get(pk=waiting.pk).folder


def test_a_replaced_attempt_commits_nothing(waiting: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    job = claim("cpu")

    def take_over(*_arguments: object) -> None:
        Job.objects.filter(pk=job.pk).update(attempt=job.attempt + 1)

    monkeypatch.setattr(recorders, "publish_folder", take_over)
    ended = run_script(FILE + REPORT, job, monkeypatch)
    assert ended.state != State.SUCCEEDED
    assert not Export.objects.get(pk=waiting.pk).folder
