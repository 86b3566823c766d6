"""Holds the rows of an upload: numbered, within size limits, and in text that UTF-8 and a database can store.

Knows no file format.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from workers.contract.errors import DataError

MAX_LINE_BYTES = 1_000_000
MAX_FIELD_BYTES = 256_000
MAX_COLUMNS = 1_000
MAX_NAME_CHARACTERS = 200
MAX_NESTING = 50
MAX_UNPACKED_BYTES = 4_000_000_000
# Without content, but not without cost.
MAX_BLANK_LINES = 1_000_000
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class OtherValue:
    """A value that is neither text, number, list nor object; `type` names what it is."""

    type: str


@dataclass(frozen=True)
class UploadRow:
    """One row, numbered from 1. `position`: its end in bytes or rows; `problem`: why it cannot be used."""

    number: int
    position: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    column: str = ""


@dataclass(frozen=True)
class UploadTable:
    """An open upload. `columns` is empty if each row names its own; `total` has the unit of `position`."""

    format: str
    columns: tuple[str, ...]
    total: int
    rows: Iterator[UploadRow]


def checked_upload_row(number: int, position: int, value: Any) -> UploadRow:
    try:
        check_value(value)
    except ValueError as error:
        return UploadRow(number, position, problem=str(error))
    return upload_row_from_object(number, position, value)


def upload_row_from_object(number: int, position: int, value: Any) -> UploadRow:
    if not isinstance(value, dict):
        return UploadRow(
            number, position, problem='This row is not a JSON object. Write it as {"column": "value", …}.'
        )
    if len(value) > MAX_COLUMNS:
        return UploadRow(
            number, position, problem=f"This row has {len(value):,} columns. At most 1,000 are read."
        )
    if problem := long_name(value):
        return UploadRow(number, position, problem=problem)
    return UploadRow(number, position, value)


def long_name(names: Iterable[Any]) -> str:
    """Return the problem if the name of a column is too long, else "". Names go into reports and messages."""
    for name in names:
        if len(name) > MAX_NAME_CHARACTERS:
            return (
                f"The column `{name[:50]}…` has a name of {len(name):,} characters. At most "
                f"{MAX_NAME_CHARACTERS} are read. Shorten it."
            )
    return ""


def too_many_blank_lines(number: int) -> DataError:
    return DataError(
        f"There are more than {MAX_BLANK_LINES:,} blank lines before line {number:,}. Remove them, and "
        "check that it is the right file."
    )


def check_value(value: Any) -> None:
    """Raise ValueError for deep nesting, NUL characters and lone surrogates."""
    level = [value]
    for _ in range(MAX_NESTING):
        for item in level:
            if isinstance(item, str):
                _check_characters(item)
        level = [inner for item in level for inner in _children(item)]
        if not level:
            return
    raise ValueError(f"This row is nested deeper than {MAX_NESTING} levels. Flatten it.")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return itertools.chain(value.keys(), value.values())
    return value if isinstance(value, list) else ()


def _check_characters(text: str) -> None:
    if "\0" in text:
        raise ValueError("This row contains a NUL character. Remove it.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("This row contains half a character (a lone surrogate). Correct it.") from None


def bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield lines without the byte order mark; None for a line over MAX_LINE_BYTES, which is never kept."""
    first = True
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(BLOCK_BYTES)
            yield None
        else:
            yield line.removeprefix(b"\xef\xbb\xbf") if first else line
        first = False
