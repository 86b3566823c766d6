"""An adapter from training and evaluation to the downloaded zip that PEFT loads.

PEFT loads it in a process without this project, and must give equal logits.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from django.conf import settings
from django.http import HttpResponseBase, StreamingHttpResponse
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, Dataset, Evaluation, Job, Project, State, User
from tests.conftest import make_run

CLEAN = """
import pathlib, sys, numpy, torch
sys.modules["bitsandbytes"] = None  # PEFT would import it, for seconds
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base_folder, adapter_folder, published, project, target = sys.argv[1:]
base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter_folder).eval()
assert AutoTokenizer.from_pretrained(adapter_folder).chat_template
assert not [name for name in sys.modules if name.split(".")[0] in ("workers", "dashboard", "django")]
ids = torch.arange(3, 23).unsqueeze(0)
with torch.no_grad():
    numpy.save(target + "/clean.npy", model(input_ids=ids).logits)
"""
# Then the engine's own logits: of the base model, and of the adapter as an evaluation loads it.
OWN = """
sys.path.append(project)
from workers.contract.specs import BaseSpec
from workers.engine.base_models.model import load_base
from workers.engine.generation.adapters import attach
base = BaseSpec(path=base_folder, name="example/tiny", sha256="0" * 64)
model = load_base(base, torch.float32, torch.device("cpu")).eval()
with torch.no_grad():
    numpy.save(target + "/plain.npy", model(input_ids=ids).logits)
    tuned = attach(model, pathlib.Path(published), "adapter")
    numpy.save(target + "/own.npy", tuned(input_ids=ids).logits)
"""


@pytest.fixture
def adapter(
    real_base: BaseModel, real_dataset: Dataset, project: Project, ed: User, work_off: Callable[[str], Job]
) -> Adapter:
    """Trained for real for forty steps, not evaluated yet."""
    run = make_run(project, real_dataset, real_base, by=ed, max_steps=40, learning_rate=1e-2)
    job = work_off("gpu")
    assert job.state == State.SUCCEEDED, job.error
    return Adapter.objects.get(run=run)


def download(client: Client, adapter: Adapter) -> bytes:
    response: HttpResponseBase = client.get(reverse("adapter-download", args=[adapter.pk]))
    assert response.status_code == 200
    assert isinstance(response, StreamingHttpResponse)
    content = response.streaming_content

    async def collect() -> bytes:
        assert isinstance(content, AsyncIterator)
        return b"".join([piece async for piece in content])

    return asyncio.run(collect())


def unpack(content: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder / "Triage-v1"


def logits_in_a_clean_process(
    base: Path, downloaded: Path, published: Path, target: Path
) -> list[np.ndarray]:
    """Return the logits of the downloaded adapter, of the base model and of the published adapter."""
    folders = [str(path) for path in (base, downloaded, published, settings.BASE_DIR, target)]
    subprocess.run([sys.executable, "-I", "-c", CLEAN + OWN, *folders], check=True, timeout=120, cwd=target)
    return [np.load(target / f"{name}.npy") for name in ("clean", "plain", "own")]


@pytest.mark.slow
def test_download_is_complete_and_loads_anywhere(
    adapter: Adapter,
    client: Client,
    vera: User,
    work_off: Callable[[str], Job],
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    client.force_login(vera)
    before = download(client, adapter)
    assert download(client, adapter) == before
    assert json.loads((unpack(before, tmp_path / "before") / "eval.json").read_text()) == []
    assert work_off("gpu").state == State.SUCCEEDED

    folder = unpack(download(client, adapter), tmp_path / "after")
    names = {path.name for path in folder.iterdir()}
    needed = {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"}
    assert needed | {"chat_template.jinja", "run.json", "eval.json", "SHA256SUMS"} <= names
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    listed = (folder / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in listed} == names - {"SHA256SUMS"}
    for path in folder.iterdir():
        content = path.read_bytes()
        for secret in (str(settings.DATA_DIR), str(settings.BASE_DIR), str(tiny_folder)):
            assert secret.encode() not in content, path.name

    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "example/tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "[More Information Needed]" not in (folder / "README.md").read_text()
    base, tuned = json.loads((folder / "eval.json").read_text())
    assert tuned["metrics"]["loss"] < base["metrics"]["loss"]
    assert tuned["rows"] == Evaluation.objects.get(run=adapter.run, subject="adapter").rows
    clean, plain, own = logits_in_a_clean_process(tiny_folder, folder, adapter.path(), tmp_path)
    assert np.abs(own - clean).max() < 1e-5
    assert np.abs(plain - clean).max() > 1e-2
    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == adapter.sha256
