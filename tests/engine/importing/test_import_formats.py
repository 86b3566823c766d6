"""Reads every file format with the same result, and refuses files that cannot be read."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.engine.importing.uploads import ROWS, Importer, lines, parquet, table_csv
from tests.tiny_model import chat
from workers.contract.errors import DataError, Stopped
from workers.contract.events import Progress
from workers.contract.specs import ImportSpec
from workers.engine.importing import run_import


def test_every_format_gives_the_same_dataset(load: Importer) -> None:
    uploads: dict[str, bytes | str] = {
        "rows.jsonl": lines(*ROWS),
        "array.json": json.dumps(ROWS, indent=2),
        "wrapped.json": json.dumps({"data": ROWS}),
        "lines.json": lines(*ROWS),
        "rows.csv": table_csv(ROWS),
        "semicolon.csv": table_csv(ROWS, ";"),
        "rows.tsv": table_csv(ROWS, "\t"),
        "rows.parquet": parquet(ROWS),
        "rows.jsonl.gz": gzip.compress(lines(*ROWS).encode()),
        "bom.jsonl": b"\xef\xbb\xbf" + lines(*ROWS).encode(),
        "bom.csv": b"\xef\xbb\xbf" + table_csv(ROWS).encode(),
    }
    found = {name: load(content, name) for name, content in uploads.items()}
    assert {values["sha256"] for values in found.values()} == {found["rows.jsonl"]["sha256"]}
    assert {values["rows"] for values in found.values()} == {40}


def test_splits_hold_canonical_rows_with_their_numbers(load: Importer) -> None:
    values = load(lines(*ROWS))
    assert values["splits"] == {"train": 32, "validation": 4, "test": 4}
    assert [row["row"] for row in load.rows()] == list(range(1, 41))
    assert load.messages() == chat("Colour of 0?", "shade 0")
    assert load.rows()[0]["text"] is None
    schema = pyarrow.parquet.read_schema(load.out / "train.parquet")
    assert [str(field.type) for field in schema] == ["int64", "string", "string", "int64"]


def test_sample_dataset_imports_without_problems(load: Importer) -> None:
    sample = Path("dashboard/samples/support_messages.jsonl")
    content = (Path(__file__).parents[3] / sample).read_bytes()
    values = load(content, sample.name)
    assert values["rows"] == values["total_rows"] >= 640
    assert values["duplicates"] == 0
    assert len(content) < 300_000


def test_scratch_files_are_removed(load: Importer) -> None:
    load(gzip.compress(lines(*ROWS).encode()), "rows.jsonl.gz")
    names = {path.name for path in load.out.iterdir()}
    assert names == {"train.parquet", "validation.parquet", "test.parquet", "report.json", "preview.json"}


def test_progress_reaches_its_total(load: Importer) -> None:
    load(lines(*ROWS))
    reading = [event for event in load.events if isinstance(event, Progress) and event.phase == "reading"]
    assert reading[-1].step == reading[-1].total > 0


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"", "rows.jsonl", "is empty"),
        (b" \n \n", "rows.jsonl", "is empty"),
        (b'{"data": []}', "rows.json", "no rows"),
        (b"prompt,completion\n", "rows.csv", "has no rows"),
        (bytes(range(256)) * 40, "rows.csv", "is not text, although its name ends in .csv"),
        (parquet(ROWS), "rows.csv", "is a Parquet file, although"),
        (b"prompt,completion\na,b\n", "rows.parquet", "is not a Parquet file"),
        (parquet(ROWS)[:-20], "rows.parquet", "not a complete Parquet file"),
        ("prompt,completion\na,b\n".encode("utf-16"), "rows.csv", "UTF-16"),
        (b"PK\x03\x04rest", "rows.zip", "archive"),
        (b"PK\x03\x04rest", "rows.xlsx", "spreadsheet"),
        (b"hello", "rows.exe", "unknown file type"),
        (gzip.compress(lines(*ROWS).encode())[:-20], "rows.jsonl.gz", "not a complete gzip"),
        (b"not packed", "rows.jsonl.gz", "not a complete gzip"),
        (b'[{"prompt": "a", "completion": "b"}, {"pro', "rows.json", "Row 2 is not valid JSON"),
        (b'[{"prompt": "a", "completion": "b"} {}]', "rows.json", "comma or the closing bracket"),
        (b'{"name": "a"}', "rows.json", "is one object"),
        (b"a,a\n1,2\n", "rows.csv", "Two columns of rows.csv are named `a`"),
        (",".join(f"c{i}" for i in range(1200)).encode() + b"\n", "rows.csv", "1,200 columns"),
        (b"[" * 100_000, "rows.json", "nested deeper"),
    ],
)
def test_unreadable_file_is_refused(load: Importer, content: bytes, name: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load(content, name)
    assert said in caught.value.message


def test_quoted_csv_value_may_contain_lines_and_separators(load: Importer) -> None:
    load(table_csv([{"prompt": 'a, "b"\nc', "completion": str(number)} for number in range(3)]), "rows.csv")
    assert load.messages() == chat('a, "b"\nc', "0")


def test_parquet_bomb_is_refused_by_its_metadata(load: Importer) -> None:
    rows = [{"prompt": "x" * 200_000, "completion": "y" * 200_000 + str(number)} for number in range(200)]
    with pytest.raises(DataError, match="limit is 20 times its size"):
        load(parquet(rows, compression="zstd", use_dictionary=False), "bomb.parquet")


def test_parquet_bomb_of_repeated_values_is_stopped_while_unpacking(load: Importer) -> None:
    rows = [{"prompt": "x" * 200_000, "completion": str(number)} for number in range(400)]
    content = parquet(rows)
    assert pyarrow.parquet.read_metadata(io.BytesIO(content)).row_group(0).total_byte_size < 1_000_000
    with pytest.raises(DataError, match="limit is 20 times its size"):
        load(content, "bomb.parquet")


def test_parquet_lists_become_messages(load: Importer) -> None:
    load(parquet([{"messages": chat(f"Hi {number}", "Hello")} for number in range(3)]), "rows.parquet")
    assert load.messages() == chat("Hi 0", "Hello")


def test_parquet_bytes_are_refused_by_type(load: Importer) -> None:
    rows = [{"prompt": "a", "completion": value} for value in (b"x", b"y", b"z")]
    with pytest.raises(DataError, match="of the type binary here"):
        load(parquet(rows), "rows.parquet")


def test_gzip_bomb_stops_at_the_size_limit(load: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.importing.tables.MAX_UNPACKED_BYTES", 2_000_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        load(gzip.compress(b"\n" * 9_000_000), "rows.jsonl.gz")


def test_parquet_column_name_of_invalid_utf8_is_refused(load: Importer) -> None:
    with pytest.raises(DataError, match="Export it again"):
        load(parquet(ROWS).replace(b"completion", b"complet\xffon"), "rows.parquet")


def test_import_stops_on_cancel(load: Importer, tmp_path: Path) -> None:
    upload = tmp_path / "rows"
    upload.write_text(lines(*ROWS))
    spec = ImportSpec(upload=str(upload), filename="rows.jsonl", tokenizer="")
    with pytest.raises(Stopped, match="cancel"):
        run_import.run_import(spec, tmp_path / "out", report=lambda event: None, should_stop=lambda: "cancel")
