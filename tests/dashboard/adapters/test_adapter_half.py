"""The download with weights rounded to bfloat16: half the size, with its own checksums."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from django.test import Client
from django.urls import reverse
from safetensors.numpy import save_file

from dashboard.models import Adapter, User
from tests.dashboard.adapters.test_adapter_archive import members

WEIGHTS = "Triage-v1/adapter_model.safetensors"


@pytest.fixture
def real(adapter: Adapter) -> Adapter:
    """An adapter with real float32 weights."""
    values = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)
    save_file({"base_model.model.o_proj.lora_A.weight": values}, adapter.path() / "adapter_model.safetensors")
    return adapter


def download(client: Client, user: User, adapter: Adapter, dtype: str = "bfloat16") -> tuple[int, str]:
    client.force_login(user)
    answer = client.get(reverse("adapter-download", args=[adapter.pk]), {"dtype": dtype})
    return answer.status_code, answer.headers.get("Content-Disposition", "")


def test_only_the_weights_differ_and_are_half_as_large(real: Adapter) -> None:
    whole, half = members(real.archive()), members(real.archive(half=True))
    assert set(whole) == set(half)
    changed = {name for name in whole if whole[name] != half[name]}
    assert changed == {WEIGHTS, "Triage-v1/SHA256SUMS"}
    assert len(half[WEIGHTS]) == pytest.approx(len(whole[WEIGHTS]) / 2, rel=0.05)
    assert hashlib.sha256(half[WEIGHTS]).hexdigest().encode() in half["Triage-v1/SHA256SUMS"]


def test_both_archives_are_cached(real: Adapter) -> None:
    whole, half = real.archive(), real.archive(half=True)
    made = half.stat().st_mtime_ns
    assert real.archive() == whole
    assert whole.exists()
    assert real.archive(half=True).stat().st_mtime_ns == made
    content = half.read_bytes()
    half.unlink()
    assert real.archive(half=True).read_bytes() == content


def test_a_viewer_downloads_it(client: Client, vera: User, real: Adapter) -> None:
    assert download(client, vera, real) == (200, 'attachment; filename="Triage-v1-bfloat16.zip"')
    assert download(client, vera, real, "")[1] == 'attachment; filename="Triage-v1.zip"'


def test_the_api_refuses_other_dtypes(api: Client, real: Adapter) -> None:
    url = f"/api/v1/adapters/{real.pk}/download"
    answer = api.get(url, {"dtype": "bfloat16"})
    assert (answer.status_code, "Triage-v1-bfloat16.zip" in answer["Content-Disposition"]) == (200, True)
    refused = api.get(url, {"dtype": "float16"})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "dtype")


def test_the_page_offers_it_for_float32_weights(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    assert b"?dtype=bfloat16" in client.get(adapter.get_absolute_url()).content
    run = adapter.run
    run.spec["hyperparameters"]["autocast_adapter_dtype"] = False
    run.save(update_fields=["spec"])
    assert b"?dtype=bfloat16" not in client.get(adapter.get_absolute_url()).content
