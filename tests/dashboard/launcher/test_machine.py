"""The set-up of a machine: messages, stamps and checks, without an installation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dashboard.launcher import machine

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Retrying after: Temporary failure in name resolution\nERROR: no match\n", "cannot be reached"),
        ("npm error code EAI_AGAIN\n", "cannot be reached"),
        ("one\nERROR: bad wheel\n\n", r"ERROR: bad wheel \(full output: step.log\)"),
    ],
)
def test_failed_step_names_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "step.log").write_text(text)
    assert re.search(sentence, machine.failure("Installing", tmp_path / "step.log"))


def test_full_disk_is_refused_before_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "INSTALL_BYTES", 2**62)
    with pytest.raises(machine.SetupError, match="GB free"):
        machine.check_space()


def test_stamp_is_stale_after_its_input_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "pins").write_text("a==1")
    stamp = machine.Stamp(tmp_path / "stamp", "pins")
    assert not stamp.fresh()
    stamp.write()
    assert machine.Stamp(tmp_path / "stamp", "pins").fresh()
    (tmp_path / "pins").write_text("a==2")
    assert not machine.Stamp(tmp_path / "stamp", "pins").fresh()


def test_changed_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.whl").write_bytes(b"something else")
    with pytest.raises(machine.SetupError, match=r"model.whl has SHA-256"):
        machine.unpack_model(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"a()\n//# sourceMappingURL=a.js.map",
        b"a{}/*# sourceMappingURL=a.css.map */",
        b"x //# sourceMappingURL=y",
    ],
)
def test_source_map_comments_are_removed(text: bytes) -> None:
    assert b"sourceMappingURL" not in machine.SOURCE_MAP.sub(b"", text)


def test_lock_file_has_hashes_and_no_addresses() -> None:
    locked = json.loads((ROOT / "static" / "package-lock.json").read_text())["packages"]
    packages = [entry for path, entry in locked.items() if path]
    assert packages
    assert all(entry["integrity"].startswith("sha512-") for entry in packages)
    assert not any("resolved" in entry for entry in packages)


def test_constraints_do_not_pin_torch() -> None:
    names = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert not names & {"torch", "triton", "setuptools", "packaging"}
    assert all("==" in line for line in (ROOT / "constraints.txt").read_text().splitlines())


def test_machine_with_nvidia_driver_installs_four_bit_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "none")
    assert machine.extras("start") == "postgres"
    monkeypatch.setattr(machine, "NVIDIA", tmp_path)
    assert machine.extras("start") == "postgres,four-bit"
    assert machine.extras("test") == machine.EXTRAS["test"]


def test_script_needs_only_the_standard_library() -> None:
    code = "import runpy, sys; sys.argv[1:] = ['browser']; runpy.run_path('dashboard/launcher/machine.py')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=ROOT, check=True, timeout=30)
