"""The engine with a library that writes to standard output, by Python and around it, and to its log."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings

from tqdm import tqdm

from workers.engine import __main__ as engine
from workers.engine import runtime


def write(**_options: object) -> None:
    print("stray" * 9999)
    # A library around Python does not notice a full disk.
    with contextlib.suppress(OSError):
        os.write(1, b"raw")
    list(tqdm(range(3)))
    warnings.warn("beware", stacklevel=1)
    logging.getLogger("library").error("alas")


def main(arguments: list[str]) -> int:
    runtime.prepare_environment = write  # type: ignore[assignment]
    return engine.main(arguments)
