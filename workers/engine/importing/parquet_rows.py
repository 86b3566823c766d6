"""Reads Parquet as a stream of rows, and limits the unpacked size by the metadata and while reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from workers.contract.errors import DataError
from workers.engine.importing.rows import (
    MAX_COLUMNS,
    MAX_NESTING,
    MAX_UNPACKED_BYTES,
    OtherValue,
    UploadRow,
    UploadTable,
    check_value,
    checked_upload_row,
    long_name,
)

MAX_EXPANSION = 20
# Small repetitive tables compress well and are harmless.
HARMLESS_UNPACKED_BYTES = 64_000_000
PARQUET_BATCH_ROWS = 256
PARQUET_BATCH_BYTES = 64_000_000
# Columns of nested types count several times in the metadata.
MAX_METADATA_ITEMS = 20_000


def open_parquet(path: Path, filename: str) -> UploadTable:
    try:
        file = pyarrow.parquet.ParquetFile(path, thrift_container_size_limit=MAX_METADATA_ITEMS)
        names = tuple(file.schema_arrow.names)
        check_value(list(names))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if "size limit" in str(error):
            raise DataError(
                f"{filename} has too many columns or row groups. At most 1,000 columns are read."
            ) from error
        if "deeply nested" in str(error):
            raise DataError(
                f"A column of {filename} is nested deeper than {MAX_NESTING} levels. Flatten it."
            ) from error
        raise DataError(f"{filename} is not a complete Parquet file. Export it again.") from error
    if problem := long_name(names):
        raise DataError(problem)
    if len(set(names)) < len(names):
        raise DataError(f"Two columns of {filename} have the same name. Rename one of them.")
    meta = file.metadata
    if len(names) > MAX_COLUMNS or meta.num_columns > MAX_COLUMNS:
        raise DataError(f"{filename} has {meta.num_columns:,} columns. At most 1,000 are read.")
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
            columns = [_to_values(column) for column in batch.columns]
            for values in zip(*columns, strict=True):
                number += 1
                yield checked_upload_row(number, number, dict(zip(batch.schema.names, values, strict=True)))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{filename} cannot be read after row {number}. Export it again.") from error


def _to_values(column: pyarrow.Array) -> list[Any]:
    """Return a column as JSON values: times and decimals as text, what has no text as OtherValue."""
    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    if plain := _plain_type(column.type):
        # A value beyond the range of its type has no text either.
        with contextlib.suppress(pyarrow.ArrowException, ValueError, OverflowError):
            return column.cast(plain).to_pylist()  # type: ignore[no-any-return]
    other = OtherValue(str(column.type))
    return [other if is_valid else None for is_valid in column.is_valid().to_pylist()]


def _plain_type(kind: pyarrow.DataType) -> pyarrow.DataType | None:
    """Return the type to which a column is cast before it is read; None if its values have no text."""
    types = pyarrow.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_struct(kind):
        parts = [(part.name, _plain_type(part.type)) for part in kind]
        return None if any(part is None for _, part in parts) else pyarrow.struct(parts)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = _plain_type(kind.value_type)
        return None if item is None else pyarrow.list_(item)
    if types.is_temporal(kind) or types.is_decimal(kind):
        # Intervals have no text in Arrow.
        return None if types.is_interval(kind) else pyarrow.string()
    if types.is_float16(kind):
        return pyarrow.float32()
    is_plain = (
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_null(kind)
    )
    return kind if is_plain else None
