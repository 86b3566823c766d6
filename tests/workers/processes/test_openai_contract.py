"""A program with the unmodified `openai` package, and real engines behind /v1: only `base_url` differs."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings

from dashboard.models import BaseModel, Job, TrainingRun
from tests.openai_client import Connect, connect, transport  # noqa: F401 - fixtures

WorkOff = Callable[[str], Job]


def rows(first: int = 0, count: int = 40) -> bytes:
    """Return rows in OpenAI's format."""
    lines = []
    for number in range(first, first + count):
        messages = [
            {"role": "user", "content": f"Which number follows {number}?"},
            {"role": "assistant", "content": f"It is {number + 1}."},
        ]
        lines.append(json.dumps({"messages": messages}).encode())
    return b"\n".join(lines)


def test_program_fine_tunes_a_model(
    connect: Connect,  # noqa: F811
    token: str,
    tiny_folder: Path,
    real_base: BaseModel,
    work_off: WorkOff,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "BUNDLED_MODEL_DIR", tiny_folder)
    client = connect(token)
    file = client.files.create(file=("numbers.jsonl", rows()), purpose="fine-tune")
    assert file.status == "uploaded"
    held_out = client.files.create(
        file=("more-numbers.jsonl", rows(first=40, count=12)),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert held_out.expires_at == held_out.created_at + 3600
    for uploaded in (file, held_out):
        work_off("cpu")
        assert client.files.wait_for_processing(uploaded.id).status == "processed"

    job = client.fine_tuning.jobs.create(
        model=real_base.hub_id,
        training_file=file.id,
        validation_file=held_out.id,
        suffix="next number",
        metadata={"team": "arithmetic"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 16}}},
        extra_body={"r": 4},
    )
    assert job.status == "queued"
    work_off("gpu")
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.validation_file == held_out.id
    assert client.files.retrieve(held_out.id).expires_at is None, "a job uses it"
    assert TrainingRun.objects.get().measured["validation_rows"] > 4, "more than the training file has"
    assert job.trained_tokens
    assert [found.id for found in client.fine_tuning.jobs.list(metadata={"team": "arithmetic"})] == [job.id]

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    steps = [event.data for event in events if event.type == "metrics"]
    assert [step["step"] for step in steps] == [2, 1]  # type: ignore[index]
    accuracies = [step["train_mean_token_accuracy"] for step in steps]  # type: ignore[index]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert events[0].created_at >= events[-1].created_at

    metrics, archive = (client.files.retrieve(file_id) for file_id in job.result_files)
    table = list(csv.DictReader(io.StringIO(client.files.content(metrics.id).text)))
    assert float(table[-1]["train_loss"]) == pytest.approx(steps[0]["train_loss"])  # type: ignore[index]
    assert float(table[-1]["train_accuracy"]) == accuracies[0]
    with zipfile.ZipFile(io.BytesIO(client.files.content(archive.id).read())) as folder:
        assert folder.testzip() is None
        assert any(name.endswith("/adapter_config.json") for name in folder.namelist())

    assert job.fine_tuned_model
    assert job.fine_tuned_model.startswith("ft:example/tiny:support:next-number:")
    assert client.models.retrieve(job.fine_tuned_model).owned_by == "support"
    assert job.fine_tuned_model in [model.id for model in client.models.list()]
    [checkpoint] = client.fine_tuning.jobs.checkpoints.list(job.id)
    values = checkpoint.metrics
    assert values.train_mean_token_accuracy in accuracies
    assert values.valid_mean_token_accuracy is not None
    assert 0 <= values.valid_mean_token_accuracy <= 1
    # So few validation rows are all used.
    assert values.full_valid_loss == values.valid_loss
    assert values.full_valid_mean_token_accuracy == values.valid_mean_token_accuracy
    assert client.models.retrieve(checkpoint.fine_tuned_model_checkpoint).id == job.fine_tuned_model
