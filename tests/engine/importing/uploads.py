"""Builds small uploads and imports them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from workers.contract.events import Event, Result
from workers.contract.specs import ImportSpec
from workers.engine.importing import run_import

ROWS = [{"prompt": f"Colour of {number}?", "completion": f"shade {number}"} for number in range(40)]


class Importer:
    """Writes an upload and imports it into a fresh folder."""

    def __init__(self, tokenizer: Path, folder: Path) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.count = 0
        self.events: list[Event] = []

    def __call__(self, content: bytes | str, name: str = "rows.jsonl", **spec: Any) -> dict[str, Any]:
        self.count += 1
        self.out = self.folder / f"out{self.count}"
        self.out.mkdir()
        upload = self.folder / f"upload{self.count}"
        upload.write_bytes(content.encode() if isinstance(content, str) else content)
        chosen = {"tokenizer": str(self.tokenizer), **spec}
        self.events = []
        run_import.run_import(
            ImportSpec(upload=str(upload), filename=name, **chosen), self.out, report=self.events.append
        )
        result = self.events[-1]
        assert isinstance(result, Result)
        return result.values

    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "report.json").read_text()))

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the three splits in the upload's order."""
        tables = [
            pyarrow.parquet.read_table(self.out / f"{name}.parquet").to_pylist()
            for name in ("train", "validation", "test")
        ]
        return sorted((row for table in tables for row in table), key=lambda row: row["row"])

    def messages(self) -> Any:
        return json.loads(self.rows()[0]["messages"])


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def split_of(load: Importer) -> dict[int, str]:
    """Row number -> the split that it is in."""
    return {
        row: name
        for name in ("train", "validation", "test")
        for row in pyarrow.parquet.read_table(load.out / f"{name}.parquet").column("row").to_pylist()
    }


def asked_twice(count: int) -> list[dict[str, str]]:
    """Long questions, each followed by itself with one more word and another answer."""
    rows = []
    for number in range(count):
        asked = " ".join(f"w{number}x{place}" for place in range(20))
        rows += [{"prompt": asked, "completion": "a"}, {"prompt": f"{asked} thanks", "completion": "b"}]
    return rows
