"""The zip of an adapter: its members, reproducible bytes and cache."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from django.conf import settings

from dashboard.models import Adapter
from tests.dashboard.conftest import FILES, evaluate


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_it_contains_folder_evaluations_and_checksums(adapter: Adapter) -> None:
    found = members(adapter.archive())
    expected = sorted(f"Triage-v1/{name}" for name in [*FILES, "eval.json", "SHA256SUMS"])
    assert sorted(found) == expected
    assert {name: found[f"Triage-v1/{name}"] for name in FILES} == FILES
    lines = found.pop("Triage-v1/SHA256SUMS").decode().splitlines()
    checksums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert checksums == {
        name.removeprefix("Triage-v1/"): hashlib.sha256(content).hexdigest()
        for name, content in found.items()
    }


def test_without_evaluations_eval_json_is_empty(adapter: Adapter) -> None:
    assert json.loads(members(adapter.archive())["Triage-v1/eval.json"]) == []


def test_it_contains_ended_evaluations(adapter: Adapter) -> None:
    evaluate(adapter, 0.0, 0.61)
    base, tuned = json.loads(members(adapter.archive())["Triage-v1/eval.json"])
    assert (base["subject"], base["metrics"]["exact_match"]) == ("base", 0.0)
    assert (tuned["subject"], tuned["metrics"]["exact_match"]) == ("adapter", 0.61)
    assert (tuned["split"], tuned["rows"]) == ("test", 200)


def test_equal_content_gives_equal_bytes(adapter: Adapter) -> None:
    first = adapter.archive()
    content = first.read_bytes()
    first.unlink()
    assert adapter.archive().read_bytes() == content


def test_members_have_a_fixed_time(adapter: Adapter) -> None:
    with zipfile.ZipFile(adapter.archive()) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_an_archive_is_cached(adapter: Adapter) -> None:
    made = adapter.archive().stat()
    assert adapter.archive().stat().st_mtime_ns == made.st_mtime_ns


def test_an_evaluation_replaces_the_older_archive(adapter: Adapter) -> None:
    older = adapter.archive()
    evaluate(adapter, 0.0, 0.5)
    newer = adapter.archive()
    assert newer.name != older.name
    assert sorted(newer.parent.glob(f"{adapter.pk}-*")) == [newer]


def test_it_contains_no_local_path(adapter: Adapter) -> None:
    evaluate(adapter, 0.0, 0.5)
    for content in members(adapter.archive()).values():
        assert str(settings.DATA_DIR).encode() not in content


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Ticket triage", "Ticket-triage-v1.zip"),
        ("../../etc/passwd", "etc-passwd-v1.zip"),
        ("Überblick", "Überblick-v1.zip"),
        ("...", "adapter-v1.zip"),
        ('a"b\r\nc', "a-b--c-v1.zip"),
    ],
)
def test_its_file_name_is_safe(adapter: Adapter, name: str, file: str) -> None:
    adapter.name = name
    assert adapter.archive_name() == file


def test_a_failed_attempt_leaves_nothing_behind(adapter: Adapter) -> None:
    before = sorted((Path(settings.DATA_DIR) / "archives").glob("*"))
    (adapter.path() / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError):
        adapter.archive()
    assert sorted((Path(settings.DATA_DIR) / "archives").glob("*")) == before
