"""Reads JSON as a stream of rows: one object per line, or one array that need not fit into memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from workers.contract.errors import DataError
from workers.engine.importing.rows import (
    MAX_BLANK_LINES,
    MAX_LINE_BYTES,
    MAX_NESTING,
    UploadRow,
    bounded_lines,
    check_value,
    checked_upload_row,
    too_many_blank_lines,
    upload_row_from_object,
)

_WINDOW_BYTES = 64_000
_MAX_WHITE_SPACE = 10_000_000
_WHITE_SPACE = re.compile(r"[ \t\r\n\ufeff]*")


def read_json_lines(path: Path) -> Iterator[UploadRow]:
    """Yield one row per line. A row's number is its line number; blank lines are skipped."""
    blank = position = 0
    with path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file), start=1):
            position = position + len(line) if line is not None else file.tell()
            if line is None:
                yield UploadRow(
                    number,
                    position,
                    problem=f"Line {number} is longer than 1 MB. Shorten it or remove the row.",
                )
            elif line.strip():
                yield _parsed(number, position, line)
            else:
                blank += 1
                if blank > MAX_BLANK_LINES:
                    raise too_many_blank_lines(number)


def _parsed(number: int, position: int, line: bytes) -> UploadRow:
    try:
        value = parse_json(line.decode())
    except UnicodeDecodeError:
        return UploadRow(number, position, problem="This row is not valid UTF-8. Save the file as UTF-8.")
    except ValueError as error:
        return UploadRow(number, position, problem=str(error))
    return upload_row_from_object(number, position, value)


def parse_json(text: str) -> Any:
    """Parse standard JSON: no NaN, no duplicate keys, at most 50 levels.

    Raises ValueError with a message for the user.
    """
    try:
        value = _DECODER.decode(text.strip())
    except RecursionError:
        raise ValueError(f"This row is nested deeper than {MAX_NESTING} levels. Flatten it.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"This row is not valid JSON ({error.msg}, character {error.pos + 1}).") from None
    check_value(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"The key `{key[:50]}` occurs twice in one object. Keep one of them.")
            seen.add(key)
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value. Write null or a number.")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def read_json_array(path: Path) -> Iterator[UploadRow]:
    """Yield the elements of one array, or of the array under `data`."""
    with path.open("rb") as file:
        text = _JsonBuffer(file)
        text.skip_to_rows()
        number = 0
        while text.peek() != "]":
            number += 1
            value = text.element(number)
            yield checked_upload_row(number, file.tell(), value)
            if text.peek() == ",":
                text.drop(1)
            elif text.peek() != "]":
                raise DataError(
                    f"After row {number} a comma or the closing bracket is missing. Check the JSON there."
                )


class _JsonBuffer:
    """A sliding window over JSON text: decoded text is dropped, more is read on demand."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.buffer = ""
        self.at = 0
        self.rest = b""
        self.ended = False
        self.number = 0

    def fill(self) -> None:
        """Append as much as there is, since a row is decoded again after each block, but at least a window.

        The bytes of an incomplete character wait for the next one.
        """
        block = self.rest + self.file.read(max(_WINDOW_BYTES, len(self.buffer) - self.at))
        if len(block) == len(self.rest):
            self.ended = True
        whole, self.rest = _whole_characters(block, self.ended)
        self.buffer = self.buffer[self.at :] + whole
        self.at = 0

    def peek(self) -> str:
        """Return the next character that is not white space. Raises DataError at the end of the file."""
        skipped = 0
        while True:
            start = self.at
            self.at = _WHITE_SPACE.match(self.buffer, start).end()  # type: ignore[union-attr]
            skipped += self.at - start
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if self.ended:
                raise DataError("The JSON ends too early. The file seems to be cut off. Upload it again.")
            if skipped > _MAX_WHITE_SPACE:
                raise DataError(
                    f"After row {self.number} come more than 10 MB of white space. Check that it is the "
                    "right file."
                )
            self.fill()

    def drop(self, count: int) -> None:
        self.at += count

    def skip_to_rows(self) -> None:
        """Move behind the opening bracket of the rows."""
        if self.peek() == "{":
            self._skip_to_data()
        if self.peek() != "[":
            raise DataError("The JSON is not a list of rows. Write [{…}, {…}], or one object per line.")
        self.drop(1)

    def _skip_to_data(self) -> None:
        while len(self.buffer) - self.at < MAX_LINE_BYTES and not self.ended and '"data"' not in self.buffer:
            self.fill()
        key = self.buffer.find('"data"', self.at)
        if key < 0 or self.buffer[self.at + 1 : key].strip():
            raise DataError(
                'The JSON is one object. Write a list of rows, {"data": [rows]}, or one object per line.'
            )
        self.at = key + len('"data"')
        if self.peek() == ":":
            self.drop(1)

    def element(self, number: int) -> Any:
        """Decode one element. Raises DataError if the rest cannot be read."""
        self.peek()
        self.number = number
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or self.ended:
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended:
                    raise DataError(
                        f"Row {number} is not valid JSON ({error.msg}). Correct it there."
                    ) from error
            except RecursionError as error:
                raise DataError(
                    f"Row {number} is nested deeper than {MAX_NESTING} levels. Flatten it."
                ) from error
            except ValueError as error:
                raise DataError(f"Row {number}: {error}") from error
            if len(self.buffer) - self.at > MAX_LINE_BYTES:
                raise DataError(
                    f"Row {number} is longer than 1 MB, or not valid JSON. Shorten it or remove the row."
                )
            self.fill()


def _whole_characters(block: bytes, ended: bool) -> tuple[str, bytes]:
    try:
        return block.decode(), b""
    except UnicodeDecodeError as error:
        if not ended and error.start >= len(block) - 3:
            return block[: error.start].decode(), block[error.start :]
        raise DataError("The file is not valid UTF-8. Save it as UTF-8 and upload it again.") from error
