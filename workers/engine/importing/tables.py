"""Reads an uploaded table as a stream of numbered rows: JSONL, JSON, CSV or Parquet, each also as `.gz`.

Memory stays bounded whatever the file holds. A broken row becomes an `UploadRow` with a problem; only a file
that cannot be read at all raises a DataError. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from workers.contract.errors import DataError
from workers.engine.importing.csv_rows import open_csv
from workers.engine.importing.json_rows import read_json_array, read_json_lines
from workers.engine.importing.parquet_rows import open_parquet
from workers.engine.importing.rows import BLOCK_BYTES, MAX_UNPACKED_BYTES, UploadTable

_SAMPLE_BYTES = 64_000
# Text compresses to a tenth, seldom to a fiftieth; small repetitive files are harmless.
MAX_GZIP_EXPANSION = 100
HARMLESS_UNPACKED_BYTES = 64_000_000

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


def open_table(path: Path, filename: str, scratch: Path) -> UploadTable:
    """Open an upload by its name and its content. A `.gz` is unpacked into `scratch`."""
    name = filename.lower()
    if name.endswith(".gz") and not name.endswith(".tar.gz"):
        name = name.removesuffix(".gz")
        path = _decompress(path, filename, scratch / "unpacked")
    kind = _format(name, filename)
    with path.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
    if not head.strip():
        raise DataError(f"{filename} is empty. Choose the file with your rows.")
    _check_matches_name(head, kind, filename)
    if kind == "parquet":
        return open_parquet(path, filename)
    if kind == "csv":
        return open_csv(path, head, filename)
    kind = _detect_json_layout(head, kind)
    rows = read_json_array(path) if kind == "json" else read_json_lines(path)
    return UploadTable(kind, (), path.stat().st_size, rows)


def _format(name: str, filename: str) -> str:
    suffix = Path(name).suffix
    if suffix in ARCHIVES or ".tar." in name:
        raise DataError(f"{filename} is an archive. Unpack it and upload one data file.")
    if suffix in SPREADSHEETS:
        raise DataError(f"{filename} is a spreadsheet. Save the sheet as CSV (UTF-8) and upload that file.")
    if suffix not in FORMATS:
        raise DataError(
            f"{filename} has an unknown file type. Upload JSONL, JSON, CSV or Parquet, or one of them as .gz."
        )
    return FORMATS[suffix]


def _check_matches_name(head: bytes, kind: str, filename: str) -> None:
    """Refuse a file whose first bytes do not match its name; it would otherwise fail row by row."""
    ending = Path(filename.lower().removesuffix(".gz")).suffix
    if head.startswith(b"PAR1") != (kind == "parquet"):
        what = "is not a Parquet file" if kind == "parquet" else "is a Parquet file"
        raise DataError(
            f"{filename} {what}, although its name ends in {ending}. Check that it is the right file."
        )
    if kind == "parquet":
        return
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{filename} is stored as UTF-16. Save it as UTF-8 and upload it again.")
    control_characters = sum(head[:4096].count(code) for code in (*range(9), *range(14, 27), *range(28, 32)))
    if control_characters > max(8, len(head[:4096]) // 20):
        raise DataError(
            f"{filename} is not text, although its name ends in {ending}. Check that it is the right file."
        )


def _decompress(path: Path, filename: str, target: Path) -> Path:
    size, allowed = 0, max(HARMLESS_UNPACKED_BYTES, MAX_GZIP_EXPANSION * path.stat().st_size)
    try:
        with gzip.open(path) as packed, target.open("wb") as plain:
            while block := packed.read(BLOCK_BYTES):
                size += len(block)
                if size > MAX_UNPACKED_BYTES:
                    raise DataError(f"{filename} unpacks to more than 4 GB. Split it into smaller files.")
                if size > allowed:
                    raise DataError(
                        f"{filename} unpacks to more than {MAX_GZIP_EXPANSION} times its size. Check that "
                        "it is the right file, or upload it uncompressed."
                    )
                plain.write(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{filename} is not a complete gzip file. Compress it again, or upload it uncompressed."
        ) from error
    return target


def _detect_json_layout(head: bytes, kind: str) -> str:
    """Return json or jsonl by content: some .json files hold one object per line, some .jsonl an array."""
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
