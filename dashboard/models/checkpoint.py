"""What the web may know of a training's checkpoints: up to which step there is one. Plain JSON, no tensors.

The engine verifies every byte before it continues; here a listed file that is missing is proof enough.
"""

from __future__ import annotations

import json
from pathlib import Path

MANIFEST = "manifest.json"


def newest_step(folder: Path) -> int | None:
    """Completed steps in the newest checkpoint below `folder` that looks whole; None without one."""
    numbered = (path for path in folder.glob("[0-9]*") if path.name.isdecimal())
    steps = (step_of(path) for path in sorted(numbered, reverse=True))
    return next((step for step in steps if step), None)


def step_of(folder: Path) -> int | None:
    """Completed steps in this one checkpoint, or None where a part of it is missing."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        is_whole = all((folder / name).is_file() for name in manifest["files"])
        return int(manifest["step"]) if is_whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
