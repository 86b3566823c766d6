"""Writes the Parquet files of a dataset version and the checksums that freeze them.

A row has a `number`, a `group` (the number of the first row of its group) and its content as canonical JSON.
Knows nothing of uploads or of how rows are assigned to splits.
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

Integers = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
SplitCodes = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]


def write_spooled_row(file: BinaryIO, number: int, value: Canonical) -> bytes:
    """Write `number TAB canonical JSON`; return the first 8 bytes of the content's SHA-256."""
    content = canonical_json(value)
    file.write(b"%d\t%s\n" % (number, content))
    return hashlib.sha256(content).digest()[:8]


def canonical_json(value: Canonical) -> bytes:
    """Return the one JSON text of a content, whatever the format of the upload was."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def read_spool(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, canonical JSON) of every spooled row."""
    with path.open("rb") as file:
        for line in file:
            number, _, content = line.rstrip(b"\n").partition(b"\t")
            yield int(number), content


def write_splits(
    spool: Path, splits: SplitCodes, groups: Integers, out_dir: Path, on_row: Callable[[int], None]
) -> tuple[str, str]:
    """Write the three Parquet files; return the SHA-256 of the version and that of its test rows.

    `splits` [rows]: an index of SPLITS; a row with a higher code is hashed, but not written.
    """
    version_hash, test_hash = hashlib.sha256(), hashlib.sha256()
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_SplitWriter(out_dir / f"{name}.parquet")) for name in SPLITS]
        for index, (number, content) in enumerate(read_spool(spool)):
            on_row(index)
            code, group = int(splits[index]), int(groups[index])
            line = _hashed_line(number, group, content)
            version_hash.update(b"%d\t" % code + line)
            if code == TEST:
                test_hash.update(line)
            if code < len(writers):
                writers[code].add(number, group, content)
    return version_hash.hexdigest(), test_hash.hexdigest()


def rows_sha256(table: Any) -> str:
    """Return the SHA-256 of a split's rows, equal to the test hash of `write_splits` for the test split."""
    digest = hashlib.sha256()
    for batch in table.to_batches(max_chunksize=ROWS_PER_GROUP):
        for row in batch.to_pylist():
            messages = row["messages"]
            content = messages.encode() if messages is not None else canonical_json(row["text"])
            digest.update(_hashed_line(row["row"], row["group"], content))
    return digest.hexdigest()


def _hashed_line(number: int, group: int, content: bytes) -> bytes:
    return b"%d\t%d\t%s\n" % (number, group, content)


class _SplitWriter:
    """One Parquet file, written one row group at a time."""

    def __init__(self, path: Path) -> None:
        self.writer = pyarrow.parquet.ParquetWriter(path, SCHEMA, compression="zstd")
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._write_row_group()
        self.writer.close()

    def add(self, number: int, group: int, content: bytes) -> None:
        is_chat = content.startswith(b"[")
        messages, text = (content.decode(), None) if is_chat else (None, json.loads(content))
        self.rows.append({"row": number, "messages": messages, "text": text, "group": group})
        if len(self.rows) >= ROWS_PER_GROUP:
            self._write_row_group()

    def _write_row_group(self) -> None:
        self.writer.write_table(pyarrow.Table.from_pylist(self.rows, schema=SCHEMA))
        self.rows = []
