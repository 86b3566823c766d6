"""Reads Parquet as a stream of rows, and limits the unpacked size by the metadata and while reading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from workers.contract.errors import DataError
from workers.engine.importing.rows import (
    MAX_COLUMNS,
    MAX_UNPACKED_BYTES,
    UploadRow,
    UploadTable,
    check_value,
    checked_upload_row,
)

MAX_EXPANSION = 20
# Small repetitive tables compress well and are harmless.
HARMLESS_UNPACKED_BYTES = 64_000_000
PARQUET_BATCH_ROWS = 256
PARQUET_BATCH_BYTES = 512_000_000


def open_parquet(path: Path, filename: str) -> UploadTable:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = tuple(file.schema_arrow.names)
        check_value(list(names))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{filename} is not a complete Parquet file. Export it again.") from error
    meta = file.metadata
    if len(names) > MAX_COLUMNS or meta.num_columns > MAX_COLUMNS:
        raise DataError(f"{filename} has {meta.num_columns} columns. At most 1,000 are read.")
    unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    allowed = min(max(HARMLESS_UNPACKED_BYTES, MAX_EXPANSION * path.stat().st_size), MAX_UNPACKED_BYTES)
    if unpacked > allowed:
        raise DataError(_too_large_message(filename, unpacked))
    return UploadTable("parquet", names, meta.num_rows, _parquet_rows(file, filename, allowed))


def _batch_rows(meta: pyarrow.parquet.FileMetaData) -> int:
    """Return fewer rows for longer column chunks: one value may fill a chunk and repeat in every row."""
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    longest = max(
        (g.column(i).total_uncompressed_size for g in groups for i in range(meta.num_columns)), default=1
    )
    return max(1, min(PARQUET_BATCH_ROWS, PARQUET_BATCH_BYTES // max(1, longest)))


def _too_large_message(filename: str, unpacked: int) -> str:
    return (
        f"{filename} unpacks to {unpacked / 1e6:,.0f} MB or more. The limit is {MAX_EXPANSION} times its "
        "size, at most 4 GB. Split it into smaller files, or upload it as JSONL."
    )


def _parquet_rows(file: pyarrow.parquet.ParquetFile, filename: str, allowed: int) -> Iterator[UploadRow]:
    number = unpacked = 0
    try:
        for batch in file.iter_batches(batch_size=_batch_rows(file.metadata), use_threads=False):
            # The metadata counts a repeated value once and may be wrong, so the unpacked bytes are counted.
            unpacked += batch.nbytes
            if unpacked > allowed:
                raise DataError(_too_large_message(filename, unpacked))
            for values in batch.to_pylist():
                number += 1
                yield checked_upload_row(number, number, values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{filename} cannot be read after row {number}. Export it again.") from error
