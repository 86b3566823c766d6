"""The newest checkpoint of a training, from its manifest and without tensors.

The engine verifies checksums before it resumes; this module only checks that all listed files exist.
"""

from __future__ import annotations

import json
from pathlib import Path

from workers.contract import checkpoint_ownership


def newest_step(folder: Path) -> int | None:
    """Return the completed steps of the newest complete checkpoint below `folder`; None without one."""
    try:
        steps = (step_of(path) for path in checkpoint_ownership.valid_checkpoints(folder))
        return next((step for step in steps if step), None)
    except OSError:
        return None


def may_exist(folder: Path) -> bool:
    """Return whether a checkpoint exists; True if the disk cannot tell, so that nothing is deleted."""
    try:
        return any(step_of(path) for path in checkpoint_ownership.valid_checkpoints(folder))
    except OSError:
        return True


def step_of(folder: Path) -> int | None:
    """Return the completed steps of one checkpoint, or None if a part of it is missing."""
    try:
        manifest = json.loads((folder / checkpoint_ownership.MANIFEST).read_text(encoding="utf-8"))
        is_whole = all((folder / name).is_file() for name in manifest["files"])
        return int(manifest["step"]) if is_whole else None
    except (*checkpoint_ownership.MISSING, ValueError, KeyError, TypeError):
        return None
