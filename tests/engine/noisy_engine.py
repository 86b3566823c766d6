"""The engine with a library that writes to standard output, by Python and around it."""

from __future__ import annotations

import os

from workers.engine import __main__ as engine
from workers.engine.training import runtime


def write(**_options: object) -> None:
    print("stray")
    os.write(1, b"raw")


def main(arguments: list[str]) -> int:
    runtime.prepare_environment = write  # type: ignore[assignment]
    return engine.main(arguments)
