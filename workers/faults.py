"""Named places at which a test lets a process die, wait, or find the disk broken. Silent unless asked.

`GRAFTWORKS_FAULTS` holds `name=action[@N]`, several separated by `;`. Actions: `kill`, `pause:SECONDS`, or
the name of an error such as `ENOSPC`; `@N` means the N-th time only. With `GRAFTWORKS_FAULTS_ONCE`, a folder,
each of them happens once however many processes pass by. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

ASKED, ONCE = "GRAFTWORKS_FAULTS", "GRAFTWORKS_FAULTS_ONCE"

# At a write the disk can refuse; at a moment a process can only die or be slow.
WRITES = (
    "checkpoint.write_holder",
    "checkpoint.make_folder",
    "checkpoint.write_arm",
    "checkpoint.write_state",
    "checkpoint.sync_file",
    "checkpoint.write_manifest",
    "checkpoint.sync_manifest",
    "checkpoint.sync_folder",
    "checkpoint.rename",
    "checkpoint.sync_parent",
    "save.make_folder",
    "save.write_weights",
    "save.write_config",
    "save.write_tokenizer",
    "save.write_card",
    "save.write_record",
    "save.sync_file",
    "save.sync_folder",
    "save.rename",
    "save.sync_parent",
    "publish.sync_file",
    "publish.rename",
    "publish.sync_parent",
)
MOMENTS = (
    "train.after_step",
    "train.after_validation",
    "checkpoint.after_arm",
    "checkpoint.after_manifest",
    "checkpoint.after_rename",
    "checkpoint.while_forgetting",
    "checkpoint.before_report",
    "save.after_weights",
    "save.before_check",
    "save.after_rename",
    "save.before_report",
    "save.before_end",
    "metrics.before_commit",
    "metrics.after_commit",
    "publish.before_check",
    "publish.after_rename",
    "publish.before_commit",
    "publish.inside_commit",
    "publish.after_commit",
    "publish.before_finish",
    "publish.after_finish",
    "score.after_subject",
)
POINTS = frozenset(WRITES + MOMENTS)
_FORM = re.compile(r"(?P<name>[\w.]+)=(?P<action>kill|E[A-Z]+|pause:(?P<seconds>[\d.]+))(@(?P<time>\d+))?")


@dataclass
class Fault:
    """What shall happen at one point."""

    text: str
    name: str
    action: str
    seconds: float
    only: int  # the N-th time; 0: each time
    passed: int = 0


_plan: tuple[tuple[str, str], list[Fault]] = (("", ""), [])


def point(name: str) -> None:
    """Pass a named place; whatever the environment asks for it happens here."""
    assert name in POINTS, f"{name} is not on the list of points"  # noqa: S101 - a misspelt one tests nothing
    asked = os.environ.get(ASKED)
    if not asked:
        return
    here = [fault for fault in _planned(asked, os.environ.get(ONCE, "")) if fault.name == name]
    for fault in here:  # all of them count, also when the first one raises
        fault.passed += 1
    for fault in here:
        if fault.only in (0, fault.passed) and _is_first(fault):
            _strike(fault)


def parse(asked: str) -> list[Fault]:
    """The faults that a text asks for; raises ValueError for what it cannot read."""
    faults = []
    for text in filter(None, (part.strip() for part in asked.split(";"))):
        found = _FORM.fullmatch(text)
        if not found or found["name"] not in POINTS:
            raise ValueError(f"{ASKED}: `{text}` is no `name=action` of a known point and action.")
        action = found["action"].partition(":")[0]
        if action.startswith("E") and not hasattr(errno, action):
            raise ValueError(f"{ASKED}: `{action}` is no error that this system knows.")
        faults.append(
            Fault(text, found["name"], action, float(found["seconds"] or 0), int(found["time"] or 0))
        )
    return faults


def marker(text: str) -> str:
    """The file in the folder of `ONCE` that says that this fault has begun to happen."""
    return re.sub(r"[^\w.@-]", "-", text)


def _planned(asked: str, once: str) -> list[Fault]:
    """Parsed once; another text or folder counts from zero again."""
    global _plan
    if _plan[0] != (asked, once):
        _plan = ((asked, once), parse(asked))
    return _plan[1]


def _is_first(fault: Fault) -> bool:
    folder = os.environ.get(ONCE)
    if not folder:
        return True
    Path(folder).mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        # Created exclusively: of two processes at the same point one is the first.
        (Path(folder) / marker(fault.text)).touch(exist_ok=False)
        return True
    return False


def _strike(fault: Fault) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "pause":
        time.sleep(fault.seconds)
    else:
        number: int = getattr(errno, fault.action)
        raise OSError(number, os.strerror(number))
