"""The zip of an adapter: what is in it, that equal content gives equal bytes, and when it changes."""

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


def test_it_holds_the_folder_the_evaluations_and_the_sums(adapter: Adapter) -> None:
    found = members(adapter.archive())
    expected = sorted(f"Triage-v1/{name}" for name in [*FILES, "eval.json", "SHA256SUMS"])
    assert sorted(found) == expected
    assert {name: found[f"Triage-v1/{name}"] for name in FILES} == FILES


def test_its_sums_are_those_of_every_other_file(adapter: Adapter) -> None:
    found = members(adapter.archive())
    lines = found.pop("Triage-v1/SHA256SUMS").decode().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert listed == {
        name.removeprefix("Triage-v1/"): hashlib.sha256(content).hexdigest()
        for name, content in found.items()
    }


def test_before_an_evaluation_there_is_an_empty_list(adapter: Adapter) -> None:
    assert json.loads(members(adapter.archive())["Triage-v1/eval.json"]) == []


def test_an_ended_evaluation_is_in_it(adapter: Adapter) -> None:
    evaluate(adapter, 0.0, 0.61)
    base, tuned = json.loads(members(adapter.archive())["Triage-v1/eval.json"])
    assert (base["subject"], base["metrics"]["exact_match"]) == ("base", 0.0)
    assert (tuned["subject"], tuned["metrics"]["exact_match"]) == ("adapter", 0.61)
    assert (tuned["split"], tuned["rows"]) == ("test", 200)


def test_two_of_the_same_content_are_equal_bytes(adapter: Adapter) -> None:
    first = adapter.archive()
    content = first.read_bytes()
    first.unlink()
    assert adapter.archive().read_bytes() == content


def test_no_clock_is_in_it(adapter: Adapter) -> None:
    with zipfile.ZipFile(adapter.archive()) as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_made_archive_is_used_again(adapter: Adapter) -> None:
    made = adapter.archive().stat()
    assert adapter.archive().stat().st_mtime_ns == made.st_mtime_ns


def test_an_evaluation_replaces_the_older_archive(adapter: Adapter) -> None:
    older = adapter.archive()
    evaluate(adapter, 0.0, 0.5)
    newer = adapter.archive()
    assert newer.name != older.name
    assert sorted(newer.parent.glob(f"{adapter.pk}-*")) == [newer]


def test_no_path_of_this_machine_is_in_it(adapter: Adapter) -> None:
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
def test_its_name_is_safe_as_a_file_name(adapter: Adapter, name: str, file: str) -> None:
    adapter.name = name
    assert adapter.archive_name() == file


def test_a_failed_attempt_leaves_nothing_behind(adapter: Adapter) -> None:
    before = sorted((Path(settings.DATA_DIR) / "archives").glob("*"))
    (adapter.path() / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError):
        adapter.archive()
    assert sorted((Path(settings.DATA_DIR) / "archives").glob("*")) == before
