"""The files of a dataset version: canonical rows on their way to Parquet, and the checksums that freeze them.

A row is `number`, `group` (the number of the first row that it belongs together with: its own, if it stands
alone) and its content as canonical JSON. Knows nothing of uploads or of how rows are divided.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import pyarrow
import pyarrow.parquet

from workers.contract.specs import SPLITS
from workers.engine.importing.shapes import Canonical

ROWS_PER_GROUP = 2_000
SCHEMA = pyarrow.schema(
    [
        ("row", pyarrow.int64()),
        ("messages", pyarrow.string()),
        ("text", pyarrow.string()),
        ("group", pyarrow.int64()),
    ]
)
TEST = SPLITS.index("test")

Numbers = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
SplitCodes = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]


def write_spooled_row(file: BinaryIO, number: int, value: Canonical) -> bytes:
    """Write one row as `number TAB canonical JSON`; the first 8 bytes of its content's SHA-256."""
    content = canonical_json(value)
    file.write(b"%d\t%s\n" % (number, content))
    return hashlib.sha256(content).digest()[:8]


def canonical_json(value: Canonical) -> bytes:
    """One way to write a content down, whatever the upload's format was."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def read_spool(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, canonical JSON) of every row, as `write_spooled_row` wrote them."""
    with path.open("rb") as file:
        for line in file:
            number, _, content = line.rstrip(b"\n").partition(b"\t")
            yield int(number), content


def write_splits(
    path: Path, places: SplitCodes, groups: Numbers, out_dir: Path, on_row: Callable[[int], None]
) -> tuple[str, str]:
    """Write the three files from a spool; (SHA-256 of the version, SHA-256 of its test rows).

    `places`: the split of each row; a row beyond the three is in the version's sum and in no file.
    """
    whole, test = hashlib.sha256(), hashlib.sha256()
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_SplitWriter(out_dir / f"{name}.parquet")) for name in SPLITS]
        for index, (number, content) in enumerate(read_spool(path)):
            on_row(index)
            place, group = int(places[index]), int(groups[index])
            line = _line(number, group, content)
            whole.update(b"%d\t" % place + line)
            if place == TEST:
                test.update(line)
            if place < len(writers):
                writers[place].add(number, group, content)
    return whole.hexdigest(), test.hexdigest()


def rows_sha256(table: Any) -> str:
    """SHA-256 of a split's rows as they lie in its file; files from before groups have each row alone."""
    found = hashlib.sha256()
    for batch in table.to_batches(max_chunksize=ROWS_PER_GROUP):
        columns = batch.to_pydict()
        numbers = columns["row"]
        groups = columns.get("group", numbers)
        for number, group, messages, text in zip(
            numbers, groups, columns["messages"], columns["text"], strict=True
        ):
            content = messages.encode() if messages is not None else canonical_json(text)
            found.update(_line(number, group, content))
    return found.hexdigest()


def _line(number: int, group: int, content: bytes) -> bytes:
    return b"%d\t%d\t%s\n" % (number, group, content)


class _SplitWriter:
    """One Parquet file, written a group of rows at a time."""

    def __init__(self, path: Path) -> None:
        self.writer = pyarrow.parquet.ParquetWriter(path, SCHEMA, compression="zstd")
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self.writer.close()

    def add(self, number: int, group: int, content: bytes) -> None:
        chat = content.startswith(b"[")
        self.columns["row"].append(number)
        self.columns["messages"].append(content.decode() if chat else None)
        self.columns["text"].append(None if chat else json.loads(content))
        self.columns["group"].append(group)
        if len(self.columns["row"]) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(pyarrow.table(self.columns, schema=SCHEMA))
        self.columns = {name: [] for name in SCHEMA.names}
