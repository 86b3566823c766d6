"""Reads CSV with commas, semicolons or tabs as a stream of rows; a broken row does not affect the others."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from workers.contract.errors import DataError
from workers.engine.importing.rows import (
    MAX_BLANK_LINES,
    MAX_COLUMNS,
    MAX_FIELD_BYTES,
    UploadRow,
    UploadTable,
    bounded_lines,
    long_name,
    too_many_blank_lines,
)

DELIMITERS = (",", ";", "\t")
# A row may have several lines, and a thousand values of 256 kB each would not fit into memory.
MAX_ROW_BYTES = 4_000_000


class _InvalidLine(Exception):
    """A line that is not valid text; its row is reported and the next one is read."""


def open_csv(path: Path, head: bytes, filename: str) -> UploadTable:
    delimiter = _delimiter(head)
    with path.open("rb") as file:
        header = _header(file, delimiter, filename)
    return UploadTable("csv", header, path.stat().st_size, _csv_rows(path, delimiter, header))


def _delimiter(head: bytes) -> str:
    """Return the delimiter with which most lines have as many values as the first, and more than one."""
    lines = head.decode("utf-8", errors="replace").splitlines()
    # The sample may end in the middle of a line.
    lines = lines if len(lines) < 2 else lines[:-1]
    best, best_score = ",", 0.0
    for delimiter in DELIMITERS:
        widths = [len(row) for row in csv.reader(lines[:200], delimiter=delimiter) if row]
        if not widths or widths[0] < 2:
            continue
        score = widths[0] * sum(width == widths[0] for width in widths) / len(widths)
        if score > best_score:
            best, best_score = delimiter, score
    # A single column of prose contains commas, but hardly ever tabs.
    return best if best_score > 0 or "," not in "".join(lines) else "\t"


def _header(file: BinaryIO, delimiter: str, filename: str) -> tuple[str, ...]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    try:
        cells = next(csv.reader(_TextLines(file), delimiter=delimiter, strict=True))
    except (csv.Error, _InvalidLine, StopIteration) as error:
        raise DataError(f"The first line of {filename} cannot be read as column names: {error}") from error
    names = tuple(cell.strip() or f"column {i}" for i, cell in enumerate(cells, start=1))
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{filename} has {len(names):,} columns. At most 1,000 are read.")
    if problem := long_name(names):
        raise DataError(problem)
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise DataError(f"Two columns of {filename} are named `{duplicates[0][:100]}`. Rename one of them.")
    return names


def _csv_rows(path: Path, delimiter: str, header: tuple[str, ...]) -> Iterator[UploadRow]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    with path.open("rb") as file:
        lines = _TextLines(file)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        next(reader)
        number = blank = 0
        while True:
            lines.row_bytes = 0
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, _InvalidLine) as error:
                number += 1
                yield UploadRow(number, lines.position, problem=_csv_problem(error))
                continue
            if cells:
                number += 1
                yield _cells_row(number, lines.position, header, cells)
                continue
            blank += 1
            if blank > MAX_BLANK_LINES:
                raise too_many_blank_lines(number + blank)


class _TextLines:
    """An iterator over decoded lines. Unlike a generator it can continue after it has raised."""

    def __init__(self, file: BinaryIO) -> None:
        self.lines = bounded_lines(file)
        self.row_bytes = self.position = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        if line is None:
            raise _InvalidLine("This row contains a line longer than 1 MB. Shorten it or remove the row.")
        self.position += len(line)
        self.row_bytes += len(line)
        if self.row_bytes > MAX_ROW_BYTES:
            raise _InvalidLine("This row is longer than 4 MB. Shorten it or remove the row.")
        if b"\0" in line:
            raise _InvalidLine("This row contains a NUL character. Remove it.")
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise _InvalidLine("This row is not valid UTF-8. Save the file as UTF-8.") from None


def _csv_problem(error: Exception) -> str:
    if isinstance(error, _InvalidLine):
        return str(error)
    if "field larger" in str(error):
        return (
            "A value in this row is longer than 256 kB, or a quotation mark is not closed. Correct the row."
        )
    return f"The quotation marks in this row do not match ({error}). Double a quotation mark inside a value."


def _cells_row(number: int, position: int, header: tuple[str, ...], cells: list[str]) -> UploadRow:
    if len(cells) != len(header):
        values = "value" if len(cells) == 1 else "values"
        columns = "column" if len(header) == 1 else "columns"
        problem = (
            f"This row has {len(cells)} {values} for {len(header)} {columns}. "
            "Put values that contain the separator in quotes."
        )
        return UploadRow(number, position, problem=problem)
    return UploadRow(number, position, dict(zip(header, cells, strict=True)))
