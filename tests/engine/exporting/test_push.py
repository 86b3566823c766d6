"""Uploads to a hub on loopback: what arrives there, and what is said when it refuses."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.engine.conftest import Recorder
from tests.engine.exporting.test_export import make_spec
from tests.hub import TOKEN, Hub, hub
from tests.tiny_model import tiny_base
from workers.contract.errors import RunError, SpecError, Stopped
from workers.contract.events import Result, never_stop
from workers.contract.specs import PushSpec
from workers.engine.exporting.push import push


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as started:
        monkeypatch.setattr(constants, "ENDPOINT", started.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield started


@pytest.fixture
def spec(tmp_path: Path) -> PushSpec:
    """A push of an adapter of a few files."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes(bytes(10_000))
    values: dict[str, Any] = {"base": tiny_base(tmp_path), "name": "Triage-v1", "repository": "team/triage"}
    return PushSpec(adapter=str(folder), format="adapter", **values)


def run(spec: PushSpec, tmp_path: Path, record: Recorder, token: str = TOKEN) -> dict[str, Any]:
    push(spec, token, tmp_path, report=record, should_stop=never_stop, disk_reserve=0)
    values: dict[str, Any] = record.of(Result)[-1].values
    return values


def test_it_is_private_unless_told_otherwise(
    spec: PushSpec, tmp_path: Path, record: Recorder, remote: Hub
) -> None:
    found = run(spec, tmp_path, record)
    assert found == {"url": f"{remote.url}/team/triage", "commit": found["commit"]}
    assert set(remote.files["team/triage"]) == {"adapter_config.json", "adapter_model.safetensors"}
    run(dataclasses.replace(spec, repository="team/open", private=False), tmp_path, record)
    assert remote.private == {"team/triage": True, "team/open": False}
    run(spec, tmp_path, record)  # once more, as after an interruption


@pytest.mark.parametrize("format", ["bfloat16", "gguf-q8_0"])
def test_merged_models_arrive_with_a_card(tmp_path: Path, record: Recorder, remote: Hub, format: str) -> None:
    values = {**vars(make_spec(tmp_path)), "format": format, "repository": "team/merged"}
    run(PushSpec(**values), tmp_path, record)
    files = remote.files["team/merged"]
    expected = {"bfloat16": {"config.json", "model.safetensors"}, "gguf-q8_0": {"Triage-v1.gguf"}}[format]
    assert expected | {"README.md"} <= set(files)
    assert b"base_model: graftworks/tiny-llama" in files["README.md"]
    assert not any(str(tmp_path).encode() in content for content in files.values())


@pytest.mark.parametrize("case", ["token", "owner", "public", "upload", "old", "offline", "unreachable"])
def test_refusals_are_told_without_the_token(
    spec: PushSpec, tmp_path: Path, record: Recorder, remote: Hub, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    if case == "owner":
        spec = dataclasses.replace(spec, repository="foreign/triage")
    if case == "public":
        remote.private["team/triage"] = False
    if case == "upload":
        remote.broken_uploads = 100
    if case == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if case == "unreachable":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    token = {"token": "hf_wrong", "old": ""}.get(case, TOKEN)
    with pytest.raises(RunError) as refusal:
        run(spec, tmp_path, record, token)
    assert refusal.value.code == "hub_refused"
    assert TOKEN not in refusal.value.message
    assert not remote.files


def test_an_adapter_without_weights_is_not_pushed(
    spec: PushSpec, tmp_path: Path, record: Recorder, remote: Hub
) -> None:
    (Path(spec.adapter) / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(RunError) as refusal:
        run(spec, tmp_path, record)
    assert (refusal.value.code, remote.files) == ("bad_adapter", {})


def test_a_stop_does_not_wait_for_the_upload(
    spec: PushSpec, tmp_path: Path, record: Recorder, remote: Hub
) -> None:
    remote.hold.clear()
    began = time.monotonic()
    with pytest.raises(Stopped):
        push(
            spec,
            TOKEN,
            tmp_path,
            report=record,
            should_stop=lambda: "cancel" if any(path.startswith("PUT") for path in remote.paths) else "",
            disk_reserve=0,
        )
    assert time.monotonic() - began < 20
    remote.hold.set()


@pytest.mark.parametrize(
    "name", ["triage", "team/../x", "a/b/c", "https://hub/x", "team/x--y", "-a/b", "ä/b"]
)
def test_repositories_are_an_owner_and_a_name(spec: PushSpec, name: str) -> None:
    with pytest.raises(SpecError):
        dataclasses.replace(spec, repository=name)
