"""Malformed uploads from a fixed seed: each ends in a clear sentence, at a bounded cost."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.engine.engine_cost import run_engine
from tests.engine.importing.uploads import lines, parquet

MAX_SECONDS = 10.0
GOOD_LINE = b'{"prompt":"a","completion":"b"}\n'
# Beyond the libraries, which take 250 MB with the CPU build of torch: 700 MB in all.
MAX_GROWTH = 450_000_000
ROW_OR_COLUMN = re.compile(r"\b(row|rows|line|lines|column|columns|prompts)\b|`", re.IGNORECASE)


@pytest.mark.slow
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.proof)])
def test_uploads_of_the_corpus_end_in_a_clear_sentence(tokenizer: Path, tmp_path: Path, every: int) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.engine.importing.corpus",
        str(tokenizer),
        str(tmp_path / "scratch"),
        str(every),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert len(results) >= 300 / every
    assert len({result["name"] for result in results}) == len(results)
    wrong = [
        result
        for result in results
        if result["code"] not in ("", "bad_data", "columns_unclear")
        or result["seconds"] > MAX_SECONDS
        or result["growth"] > MAX_GROWTH
        or not is_clear(result)
    ]
    assert not wrong


def is_clear(result: dict[str, Any]) -> bool:
    """Return whether the message names row or column, or the file if it cannot be read at all."""
    names = [bool(problem["row"] and problem["message"]) for problem in result["problems"]]
    message = result["message"]
    return all(names) and (
        not result["code"]
        or bool(ROW_OR_COLUMN.search(message))
        or result["filename"] in message
        or message.startswith(("The JSON", "The file"))
    )


def duplicate_keys() -> bytes:
    pairs = ", ".join(f'"k{number % 49_999}": 1' for number in range(50_000))
    return (
        lines(*[{"prompt": f"p{n}", "completion": "c"} for n in range(20)]).encode()
        + ("{" + pairs + "}\n").encode() * 10
    )


def rows_bomb() -> bytes:
    count = 8_000_000
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1_000, pyarrow.int32()), ["a"])
    chunks = pyarrow.chunked_array([column.cast(pyarrow.string())] * (count // 1_000))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": chunks, "completion": chunks}), buffer)
    return buffer.getvalue()


def zeros() -> bytes:
    member = gzip.compress(b"\0" * 42_000_000, mtime=0)
    return gzip.compress(b'{"prompt": "a', mtime=0) + member * 100


def new_keys() -> bytes:
    return b"".join(
        b'{"prompt":"p%d","completion":"c",%s}\n'
        % (row, b",".join(b'"%s%d_%d":1' % (b"k" * 180, row, place) for place in range(9)))
        for row in range(35_000)
    )


def long_keys() -> bytes:
    rows = [(row, b"%06d" % row * 150_000 if row >= 100 else b"k") for row in range(200)]
    return b"".join(b'{"prompt":"p%d","completion":"c","%s":1}\n' % row for row in rows)


def columns(count: int) -> Callable[[], bytes]:
    def build() -> bytes:
        return parquet([{f"c{number}": 1 for number in range(count)}])

    return build


def json_columns() -> bytes:
    return lines(*({f"c{row}_{place}": "x" for place in range(990)} for row in range(100))).encode()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "50,000 duplicate keys": ("rows.jsonl", duplicate_keys),
    "8 million equal rows": ("rows.parquet", rows_bomb),
    "zeros that unpack to 4.2 GB": ("rows.jsonl.gz", zeros),
    "50 million blank lines": (
        "rows.jsonl",
        lambda: GOOD_LINE + b"\n" * 50_000_000,
    ),
    "50 million blank lines of CSV": ("rows.csv", lambda: b"prompt,completion\na,b\n" + b"\n" * 50_000_000),
    "100 MB of white space": (
        "rows.json",
        lambda: b'[{"prompt":"a","completion":"b"},' + b" " * 100_000_000 + b"]",
    ),
    "60 MB of new keys": ("rows.jsonl", new_keys),
    "90 MB of long keys": ("rows.jsonl", long_keys),
    "99,000 columns": ("rows.jsonl", json_columns),
    "99,000 columns of Parquet": ("rows.parquet", columns(99_000)),
    "20 million bad rows": ("rows.jsonl", lambda: GOOD_LINE + b"{}\n" * 20_000_000),
    "20 million bad rows of CSV": ("rows.csv", lambda: b"prompt,completion\n" + b"x\n" * 20_000_000),
    "60 MB of open quotation marks": ("rows.csv", lambda: b"prompt,completion\n" + b'"a,b\n' * 12_000_000),
}


# One of compression, of keys and of columns; each other takes many seconds and belongs to the proof.
SHORT = ("zeros that unpack to 4.2 GB", "50,000 duplicate keys", "99,000 columns")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.proof) for name in BOMBS]
)
def test_an_expensive_upload_is_bounded(name: str, tokenizer: Path, tmp_path: Path) -> None:
    filename, build = BOMBS[name]
    (tmp_path / "upload").write_bytes(build())
    spec = {
        "upload": str(tmp_path / "upload"),
        "filename": filename,
        "tokenizer": str(tokenizer),
        "skip_bad_rows": True,
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    failure, seconds, growth = run_engine("import", tmp_path)
    print(f"{name}: {seconds:.1f} s, {growth / 1e6:.0f} MB, {failure}")
    assert seconds < MAX_SECONDS
    assert growth < MAX_GROWTH
    if failure:
        assert failure["code"] in ("bad_data", "columns_unclear")
        assert ROW_OR_COLUMN.search(failure["message"]) or filename in failure["message"]
