"""Reads an uploaded table as a stream of numbered rows: JSONL, JSON, CSV or Parquet, each also as `.gz`.

Memory stays bounded whatever the file holds. A broken row is a `Row` with a problem; only a file that cannot
be read at all is a DataError. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from workers.errors import DataError

MAX_LINE_BYTES = 1_000_000
MAX_FIELD_BYTES = 256_000
MAX_COLUMNS = 1_000
MAX_NESTING = 50
MAX_UNPACKED_BYTES = 4_000_000_000
MAX_EXPANSION = 20
# Short repetitive tables compress better than any bomb worth the name.
HARMLESS_UNPACKED_BYTES = 64_000_000
PARQUET_BATCH_ROWS = 256
PARQUET_BATCH_BYTES = 512_000_000
_BLOCK = 1 << 20
_SAMPLE_BYTES = 64_000

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst")
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Row:
    """One row of the upload, numbered from 1. `position`: how far into the table (bytes or rows) it ends."""

    number: int
    position: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    column: str = ""


@dataclass(frozen=True)
class Table:
    """An open upload. `columns` is empty where each row brings its own; `total` has the unit of positions."""

    format: str
    columns: tuple[str, ...]
    total: int
    rows: Iterator[Row]


class _BadLine(Exception):
    """A line that cannot be text; its row is reported and the next one read."""


def open_table(path: Path, filename: str, scratch: Path) -> Table:
    """Find out what the upload is, by name and by content; `scratch` is for unpacking a `.gz`."""
    name = filename.lower()
    if name.endswith(".gz") and not name.endswith(".tar.gz"):
        name = name.removesuffix(".gz")
        path = _unpack(path, filename, scratch / "unpacked")
    kind = _format(name, filename)
    with path.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
    if not head.strip():
        raise DataError(f"{filename} is empty. Choose the file with your rows.")
    _check_content(head, kind, filename)
    if kind == "parquet":
        return _open_parquet(path, filename)
    if kind == "csv":
        return _open_csv(path, head, filename)
    kind = _json_or_lines(head, kind)
    rows = _json_rows(path) if kind == "json" else _line_rows(path)
    return Table(kind, (), path.stat().st_size, rows)


def _format(name: str, filename: str) -> str:
    suffix = Path(name).suffix
    if suffix in ARCHIVES or ".tar." in name:
        raise DataError(
            f"{filename} is an archive, and archives are not read. Unpack it and upload one data file."
        )
    if suffix in SPREADSHEETS:
        raise DataError(f"{filename} is a spreadsheet. Save the sheet as CSV (UTF-8) and upload that file.")
    if suffix not in FORMATS:
        raise DataError(
            f"{filename} has no known ending. Upload JSONL, JSON, CSV or Parquet, or a .gz of one of them."
        )
    return FORMATS[suffix]


def _check_content(head: bytes, kind: str, filename: str) -> None:
    """The first bytes must fit the name: a picture called rows.csv would otherwise fail row by row."""
    ending = Path(filename.lower().removesuffix(".gz")).suffix
    if head.startswith(b"PAR1") != (kind == "parquet"):
        what = "is no Parquet file" if kind == "parquet" else "is a Parquet file"
        raise DataError(
            f"{filename} {what}, although its name says {ending}. Check that it is the right file."
        )
    if kind == "parquet":
        return
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{filename} is stored as UTF-16. Save it as UTF-8 and upload it again.")
    strange = sum(head[:4096].count(code) for code in (*range(9), *range(14, 27), *range(28, 32)))
    magic = head.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\x89PNG", b"%PDF", b"BZh", b"\xfd7zXZ", b"GIF8"))
    if magic or strange > max(8, len(head[:4096]) // 20):
        raise DataError(
            f"{filename} is not text, although its name says {ending}. Check that it is the right file."
        )
    if kind == "csv" and b"\n" not in head and b"\r" in head:
        raise DataError(f"{filename} has line ends of old Macs. Save it with Unix or Windows line ends.")


def _unpack(path: Path, filename: str, target: Path) -> Path:
    size = 0
    try:
        with gzip.open(path) as packed, target.open("wb") as plain:
            while block := packed.read(_BLOCK):
                size += len(block)
                if size > MAX_UNPACKED_BYTES:
                    raise DataError(f"{filename} unpacks to more than 4 GB. Split it into smaller files.")
                plain.write(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{filename} is no complete gzip file. Pack it again, or upload it unpacked."
        ) from error
    return target


def _json_or_lines(head: bytes, kind: str) -> str:
    """Many a .json holds one object per line, and some .jsonl hold an array: content decides."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return "json"
    first_line, line_end, rest = text.partition(b"\n")
    if kind == "json" and text.startswith(b"{"):
        try:
            json.loads(first_line)
        except (ValueError, RecursionError):
            return "json"
        return "jsonl" if line_end and rest.strip() else "json"
    return kind


# JSON


def _line_rows(path: Path) -> Iterator[Row]:
    """One JSON object per line; a row's number is its line, so blank lines count in the numbering alone."""
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            position = file.tell()
            if line is None:
                yield Row(
                    number,
                    position,
                    problem=f"Line {number} is longer than 1 MB. Shorten it or remove the row.",
                )
            elif line.strip():
                yield _parsed(number, position, line)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines without a byte order mark; None for one above the limit, which is skipped without keeping it."""
    first = True
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(_BLOCK)
            yield None
        else:
            yield line.removeprefix(b"\xef\xbb\xbf") if first else line
        first = False


def _parsed(number: int, position: int, line: bytes) -> Row:
    try:
        value = parse_json(line.decode())
    except UnicodeDecodeError:
        return Row(number, position, problem="This row is not valid UTF-8. Save the file as UTF-8.")
    except ValueError as error:
        return Row(number, position, problem=str(error))
    return _object_row(number, position, value)


def _checked_row(number: int, position: int, value: Any) -> Row:
    try:
        check_value(value)
    except ValueError as error:
        return Row(number, position, problem=str(error))
    return _object_row(number, position, value)


def _object_row(number: int, position: int, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(
            number, position, problem='This row is no JSON object. Write it as {"column": "value", …}.'
        )
    if len(value) > MAX_COLUMNS:
        return Row(number, position, problem=f"This row has {len(value)} columns. At most 1,000 are read.")
    return Row(number, position, value)


def parse_json(text: str) -> Any:
    """JSON as the standard has it: no NaN, no key twice, at most 50 levels. ValueError says it plainly."""
    try:
        value = _DECODER.decode(text.strip())
    except RecursionError:
        raise ValueError(f"This row is nested deeper than {MAX_NESTING} levels. Flatten it.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"This row is not valid JSON ({error.msg}, character {error.pos + 1}).") from None
    check_value(value)
    return value


def check_value(value: Any) -> None:
    """Refuse deep nesting, and text that no database and no UTF-8 file can hold."""
    level = [value]
    for _ in range(MAX_NESTING):
        for item in level:
            if isinstance(item, str):
                _check_characters(item)
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return
    raise ValueError(f"This row is nested deeper than {MAX_NESTING} levels. Flatten it.")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return itertools.chain(value.keys(), value.values())
    return value if isinstance(value, list) else ()


def _check_characters(text: str) -> None:
    if "\0" in text:
        raise ValueError("This row holds a NUL character. Remove it.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("This row holds half a character (a lone surrogate). Correct it.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"The key `{twice[:50]}` stands twice in one object. Keep one of them.")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value. Write null or a number.")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _json_rows(path: Path) -> Iterator[Row]:
    """Elements of one array, or of the array under `data`, decoded one by one from a sliding buffer."""
    with path.open("rb") as file:
        text = _Window(file)
        text.skip_to_rows()
        number = 0
        while text.peek() != "]":
            number += 1
            value = text.element(number)
            yield _checked_row(number, file.tell(), value)
            if text.peek() == ",":
                text.drop(1)
            elif text.peek() != "]":
                raise DataError(
                    f"After row {number} a comma or the closing bracket is missing. Check the JSON there."
                )


class _Window:
    """A view on JSON text that is longer than memory: what was decoded is dropped, more is read on demand."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.buffer = ""
        self.at = 0
        self.rest = b""
        self.ended = False

    def fill(self) -> None:
        """Append a block; bytes of a half-read character wait for the next one."""
        block = self.rest + self.file.read(_SAMPLE_BYTES)
        if len(block) == len(self.rest):
            self.ended = True
        whole, self.rest = _whole_characters(block, self.ended)
        self.buffer = self.buffer[self.at :] + whole
        self.at = 0

    def peek(self) -> str:
        """The next character that is no white space; a text that ends here is cut off."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\r\n\ufeff":
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if self.ended:
                raise DataError("The JSON ends in the middle. The file seems to be cut off; upload it again.")
            self.fill()

    def drop(self, count: int) -> None:
        self.at += count

    def skip_to_rows(self) -> None:
        """Stand behind the opening bracket of the rows."""
        if self.peek() == "{":
            self._skip_to_data()
        if self.peek() != "[":
            raise DataError("The JSON holds no list of rows. Write [{…}, {…}], or one object per line.")
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
        """Decode one element; DataError where the text cannot be read on."""
        self.peek()
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


# CSV


def _open_csv(path: Path, head: bytes, filename: str) -> Table:
    delimiter = _delimiter(head)
    with path.open("rb") as file:
        header = _header(file, delimiter, filename)
    return Table("csv", header, path.stat().st_size, _csv_rows(path, delimiter, header))


def _delimiter(head: bytes) -> str:
    """The separator under which most lines have as many values as the first one, and more than one."""
    lines = head.decode("utf-8", errors="replace").splitlines()
    lines = lines[:-1] if len(head) == _SAMPLE_BYTES else lines
    best, best_score = ",", 0.0
    for delimiter in DELIMITERS:
        widths = [len(row) for row in csv.reader(lines[:200], delimiter=delimiter) if row]
        if not widths or widths[0] < 2:
            continue
        score = widths[0] * sum(width == widths[0] for width in widths) / len(widths)
        if score > best_score:
            best, best_score = delimiter, score
    # A single column of prose holds commas; a tab is the separator that it holds least.
    return best if best_score > 0 or "," not in "".join(lines) else "\t"


def _header(file: BinaryIO, delimiter: str, filename: str) -> tuple[str, ...]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    try:
        cells = next(csv.reader(_text_lines(file), delimiter=delimiter, strict=True))
    except (csv.Error, _BadLine, StopIteration) as error:
        raise DataError(f"The first line of {filename} cannot be read as column names: {error}") from error
    names = tuple(cell.strip() or f"column {i}" for i, cell in enumerate(cells, start=1))
    if len(names) > MAX_COLUMNS:
        raise DataError(f"{filename} has {len(names)} columns. At most 1,000 are read.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"Two columns of {filename} are named `{twice[0][:100]}`. Rename one of them.")
    return names


def _csv_rows(path: Path, delimiter: str, header: tuple[str, ...]) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    with path.open("rb") as file:
        reader = csv.reader(_text_lines(file), delimiter=delimiter, strict=True)
        next(reader)
        number = 0
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, _BadLine) as error:
                number += 1
                yield Row(number, file.tell(), problem=_csv_problem(error))
                continue
            if cells:
                number += 1
                yield _cells_row(number, file.tell(), header, cells)


def _text_lines(file: BinaryIO) -> Iterator[str]:
    return _TextLines(file)


class _TextLines:
    """Decoded lines; unlike a generator it goes on after raising, so that one bad line costs one row."""

    def __init__(self, file: BinaryIO) -> None:
        self.lines = _lines(file)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        if line is None:
            raise _BadLine("This row holds a line longer than 1 MB. Shorten it or remove the row.")
        if b"\0" in line:
            raise _BadLine("This row holds a NUL character. Remove it.")
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise _BadLine("This row is not valid UTF-8. Save the file as UTF-8.") from None


def _csv_problem(error: Exception) -> str:
    if isinstance(error, _BadLine):
        return str(error)
    if "field larger" in str(error):
        return "A value in this row is longer than 256 kB, or a quotation mark is never closed."
    return (
        f"The quotation marks in this row do not fit ({error}). Write a quotation mark inside a value twice."
    )


def _cells_row(number: int, position: int, header: tuple[str, ...], cells: list[str]) -> Row:
    if len(cells) != len(header):
        problem = (
            f"This row has {len(cells)} values for {len(header)} columns. Put text with separators in quotes."
        )
        return Row(number, position, problem=problem)
    return Row(number, position, dict(zip(header, cells, strict=True)))


# Parquet


def _open_parquet(path: Path, filename: str) -> Table:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = tuple(file.schema_arrow.names)
        check_value(list(names))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{filename} is no complete Parquet file. Export it again.") from error
    meta = file.metadata
    if len(names) > MAX_COLUMNS or meta.num_columns > MAX_COLUMNS:
        raise DataError(f"{filename} has {meta.num_columns} columns. At most 1,000 are read.")
    unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    allowed = min(max(HARMLESS_UNPACKED_BYTES, MAX_EXPANSION * path.stat().st_size), MAX_UNPACKED_BYTES)
    if unpacked > allowed:
        raise DataError(_too_much(filename, unpacked))
    return Table("parquet", names, meta.num_rows, _parquet_rows(file, filename, allowed))


def _batch_rows(meta: pyarrow.parquet.FileMetaData) -> int:
    """A value can be as long as its column chunk and stand in every row, so long chunks mean few rows."""
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    longest = max(
        (g.column(i).total_uncompressed_size for g in groups for i in range(meta.num_columns)), default=1
    )
    return max(1, min(PARQUET_BATCH_ROWS, PARQUET_BATCH_BYTES // max(1, longest)))


def _too_much(filename: str, unpacked: int) -> str:
    return (
        f"{filename} unpacks to {unpacked / 1e6:,.0f} MB or more, over {MAX_EXPANSION} times its size or "
        "4 GB. Split it into smaller files, or upload it as JSONL."
    )


def _parquet_rows(file: pyarrow.parquet.ParquetFile, filename: str, allowed: int) -> Iterator[Row]:
    number = unpacked = 0
    try:
        for batch in file.iter_batches(batch_size=_batch_rows(file.metadata), use_threads=False):
            # The metadata counts a repeated value once, and may lie: what really comes out counts.
            unpacked += batch.nbytes
            if unpacked > allowed:
                raise DataError(_too_much(filename, unpacked))
            for values in batch.to_pylist():
                number += 1
                yield _checked_row(number, number, values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{filename} cannot be read after row {number}. Export it again.") from error
