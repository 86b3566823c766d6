"""Generates malformed uploads from a fixed seed, imports them, and prints what each cost and how it ended.

    python -m tests.engine.importing.corpus MODEL_FOLDER SCRATCH_FOLDER

One JSON line for each file: name, seconds of processor time, code and message of its failure, and by how many
bytes this process has grown at most. A file that is imported has no code.
"""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tests.engine.engine_cost import load_libraries, peak_memory
from tests.engine.importing.uploads import ROWS, lines, parquet, table_csv
from tests.tiny_model import chat
from workers.contract.specs import ImportSpec
from workers.engine.__main__ import failure
from workers.engine.importing.run_import import run_import

SEED = 906
GOOD = [dict(row) for row in ROWS[:12]]


@dataclass(frozen=True)
class Upload:
    """A file by its name in the upload, with the options of its import."""

    name: str
    filename: str
    content: bytes
    options: dict[str, Any] = field(default_factory=dict)


def corpus() -> Iterator[Upload]:
    """Yield every upload, the same ones each time."""
    yield from _csv_uploads()
    yield from _json_uploads()
    yield from _chat_uploads()
    yield from _parquet_uploads()
    yield from _gzip_uploads()
    yield from _mutated_uploads()


def _csv_uploads() -> Iterator[Upload]:
    good = table_csv(GOOD)
    header, *body = good.encode().splitlines(keepends=True)
    contents: dict[str, bytes] = {
        "bom": b"\xef\xbb\xbf" + good.encode(),
        "utf-16": good.encode("utf-16"),
        "utf-16 without mark": good.encode("utf-16-le"),
        "latin-1": good.replace("shade", "Grün").encode("latin-1"),
        "mixed newlines": good.replace("\r\n", "\n", 3).replace("\r\n", "\r", 2).encode(),
        "nul in the header": b"pro\0mpt,completion\na,b\n" * 4,
        "long line": header + b"x" * 3_000_000 + b",y\n" + b"".join(body),
        "2,000 columns": ",".join(f"c{number}" for number in range(2_000)).encode() + b"\n1\n",
        "duplicate column": b"prompt,prompt\na,b\n" * 4,
        "empty column names": b",,\na,b,c\n" * 4,
        "long column name": b"prompt,completion," + b"n" * 5_000 + b"\n" + b"a,b,c\n" * 4,
        "header alone": header,
        "blank lines": header + b"\r\n" * 5_000 + b"".join(body),
        "white space": b"   \n \t \n",
        "one quotation mark": header + b'"' + b"".join(body),
        "open quotation mark": header + b"".join(body) + b'"never closed',
        "large open quotation": header + b'"' + b"x,y\n" * 200_000,
        "row of many lines": header + b'a,"' + b"line\n" * 900_000 + b'"\n' + b"".join(body),
        "formulas": table_csv([{"prompt": f"={row['prompt']}", "completion": "@x"} for row in GOOD]).encode(),
        "one column": b"only\n" + b"value\n" * 20,
        "semicolons and commas": good.replace(",", ";", 5).encode(),
        "separators alone": b",,,,\n" * 100,
        "html": b"<!doctype html><html><body>Sign in</body></html>\n" * 30,
        "binary": bytes(range(256)) * 40,
        "pdf": b"%PDF-1.7\n" + bytes(range(200)) * 30,
    }
    for cell in (
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b'"a"b',
        b'a""b"',
        b"\x1b[31m",
        b"\r",
        b"",
        b" ",
        b"x" * 300_000,
    ):
        contents[f"cell {cell[:8]!r}"] = header + b"".join(body[:3]) + cell + b",y\n" + b"".join(body[3:])
        contents[f"cell {cell[:8]!r} in quotes"] = header + b"".join(body) + b'y,"' + cell + b'"\n'
    for name, content in contents.items():
        yield Upload(f"csv: {name}", "rows.csv", content)
        yield Upload(f"tsv: {name}", "rows.tsv", content.replace(b",", b"\t"), {"skip_bad_rows": True})


def _json_uploads() -> Iterator[Upload]:
    odd: dict[str, str] = {
        "truncated": '{"prompt": "a", "comple',
        "nan": '{"prompt": NaN, "completion": "b"}',
        "infinity": '{"prompt": 1e999, "completion": "b"}',
        "huge integer": '{"prompt": ' + "9" * 10_000 + ', "completion": "b"}',
        "deep list": '{"prompt": ' + "[" * 10_000 + "]" * 10_000 + ', "completion": "b"}',
        "deep object": '{"a":' * 5_000 + "1" + "}" * 5_000,
        "duplicate key": '{"prompt": "a", "prompt": "b", "completion": "c"}',
        "5,000 duplicate keys": "{" + ", ".join('"prompt": "a"' for _ in range(5_000)) + "}",
        "lone surrogate": '{"prompt": "\\ud800", "completion": "b"}',
        "lone surrogate key": '{"prompt": "a", "completion": "b", "\\udfff": 1}',
        "nul": '{"prompt": "\\u0000", "completion": "b"}',
        "list": "[1, 2]",
        "number": "17",
        "text": '"prompt"',
        "null": "null",
        "single quotes": "{'prompt': 'a', 'completion': 'b'}",
        "two objects": '{"prompt": "a", "completion": "b"} {"prompt": "a", "completion": "b"}',
        "comma at the end": '{"prompt": "a", "completion": "b"},',
        "comment": "// nothing",
        "2,000 columns": json.dumps({f"c{number}": number for number in range(2_000)}),
        "long key": json.dumps({"prompt": "a", "completion": "b", "k" * 100_000: 1}),
        "empty key": '{"prompt": "a", "completion": "b", "": 1}',
        "blank text": '{"prompt": " ", "completion": "b"}',
        "large text": json.dumps({"prompt": "x" * 300_000, "completion": "b"}),
        "long line": json.dumps({"prompt": "x" * 2_000_000, "completion": "b"}),
        "html": "<html>",
        "tools": '{"prompt": "a", "completion": "b", "tools": [{}]}',
    }
    for value in (None, True, 5, 0.5, [], {}, ["x"], {"role": "user"}, [[]], [{"role": []}]):
        shown = json.dumps(value)
        odd[f"prompt {shown}"] = json.dumps({"prompt": value, "completion": "b"})
        odd[f"completion {shown}"] = json.dumps({"prompt": "a", "completion": value})
    for name, text in odd.items():
        yield Upload(
            f"jsonl: {name}", "rows.jsonl", (lines(*GOOD[:5]) + text + "\n" + lines(*GOOD[5:])).encode()
        )
        yield Upload(
            f"json: {name}", "rows.json", json.dumps(GOOD[:5])[:-1].encode() + b", " + text.encode() + b"]"
        )
    for name, text in {
        "white space alone": " " * 200_000,
        "open array": "[" + " " * 200_000,
        "object of objects": '{"rows": {"a": 1}}',
        "data is text": '{"data": "x"}',
        "nothing but brackets": "[" * 50_000,
        "empty array": "[]",
        "nested data": '{"data": ' + json.dumps(GOOD) + "}",
        "columns of their own": lines(*({f"c{row}_{place}": 1 for place in range(900)} for row in range(20))),
    }.items():
        yield Upload(f"json: {name}", "rows.json", text.encode())


def _chat_uploads() -> Iterator[Upload]:
    good = [{"messages": chat(f"Hi {number}", "Hello")} for number in range(6)]
    odd: list[Any] = [None, True, 3, "user", "", [], {}, ["user"], {"role": "user"}, [[1]], "tool", "🤖" * 50]
    for key in ("role", "from", "content", "value", "weight"):
        for value in odd:
            message = {"role": "user", "content": "x", key: value}
            if key in ("from", "value"):
                message = {"from": "human", "value": "x", key: value}
            column = "conversations" if key in ("from", "value") else "messages"
            rows = [{column: row["messages"]} for row in good]
            if column == "conversations":
                rows = [{column: [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 4
            content = lines(*rows, {column: [message, *chat("a", "b")]})
            yield Upload(f"chat: {key} {json.dumps(value)[:20]}", "rows.jsonl", content.encode())
    for name, value in {
        "30,000 messages": [{"role": "user", "content": "x"}] * 20_001,
        "messages as text": json.dumps(chat("a", "b")),
        "messages as broken text": "[{",
        "messages as deep text": "[" * 3_000,
        "a list of lists": [chat("a", "b")],
    }.items():
        yield Upload(f"chat: {name}", "rows.jsonl", lines(*good, {"messages": value}).encode())


def _parquet_uploads() -> Iterator[Upload]:
    good = parquet(GOOD)
    whole = {"prompt": pyarrow.array([row["prompt"] for row in GOOD]), "completion": ["b"] * len(GOOD)}
    count = len(GOOD)
    rare: dict[str, pyarrow.Array] = {
        "timestamp": pyarrow.array([2**62] * count, pyarrow.timestamp("us")),
        "timestamp in seconds": pyarrow.array([2**50] * count, pyarrow.timestamp("s")),
        "timestamp of a zone": pyarrow.array([0] * count, pyarrow.timestamp("ns", "Mars/Base")),
        "nanoseconds": pyarrow.array([2**62] * count, pyarrow.timestamp("ns")),
        "date": pyarrow.array([2**30] * count, pyarrow.date32()),
        "date in milliseconds": pyarrow.array([86_400_000 * 10**9] * count, pyarrow.date64()),
        "time": pyarrow.array([1] * count, pyarrow.time64("ns")),
        "duration": pyarrow.array([2**62] * count, pyarrow.duration("s")),
        "decimal": pyarrow.array([decimal.Decimal("1.5")] * count, pyarrow.decimal128(38, 10)),
        "large decimal": pyarrow.array([decimal.Decimal(1)] * count, pyarrow.decimal256(76, 0)),
        "binary": pyarrow.array([b"\xff\0"] * count, pyarrow.binary()),
        "fixed binary": pyarrow.array([b"\xff\xfe"] * count, pyarrow.binary(2)),
        "half float": pyarrow.array([1.5] * count, pyarrow.float32()).cast(pyarrow.float16()),
        "nan": pyarrow.array([float("nan")] * count),
        "unsigned": pyarrow.array([2**64 - 1] * count, pyarrow.uint64()),
        "nulls": pyarrow.nulls(count),
        "map": pyarrow.array([[("a", 1)]] * count, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "struct": pyarrow.array([{"a": {"b": datetime.date(2020, 1, 1)}}] * count),
        "list of timestamps": pyarrow.array([[2**62]] * count, pyarrow.list_(pyarrow.timestamp("us"))),
        "dictionary": pyarrow.array(["x"] * count).dictionary_encode(),
        "dictionary of numbers": pyarrow.array([5] * count).dictionary_encode(),
        "large text": pyarrow.array(["x"] * count, pyarrow.large_string()),
        "nul": pyarrow.array(["\0"] * count),
    }
    for name, column in rare.items():
        for place in ("prompt", "extra"):
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.table({**whole, place: column}), buffer)
            yield Upload(f"parquet: {name} in {place}", "rows.parquet", buffer.getvalue())
    for name, content in {
        "footer cut off": good[:-20],
        "start alone": good[:100],
        "magic alone": b"PAR1PAR1",
        "footer too long": good[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
        "text": b"prompt,completion\n" * 50,
        "2,000 columns": parquet([{f"c{number}": 1 for number in range(2_000)}]),
        "no rows": parquet([{"prompt": "a", "completion": "b"}])[:4] + good[4:],
        "long name": parquet([{"n" * 5_000: "a", "completion": "b"}]),
        "deep schema of objects": nested_schema(40),
        "deeper schema of objects": nested_schema(500),
        "deepest schema of objects": nested_schema(19_000),
        "deepest schema of lists": nested_schema(19_000, repetition=2),
        "deep lists": parquet([{"prompt": json.loads("[" * 60 + "1" + "]" * 60), "completion": "b"}]),
    }.items():
        yield Upload(f"parquet: {name}", "rows.parquet", content)


def nested_schema(depth: int, repetition: int = 1) -> bytes:
    """Return an empty Parquet file of one column, nested so deep that Arrow cannot write it.

    `repetition`: 1 for objects that may be missing, 2 for lists.
    """
    # Thrift's compact protocol: fields 3 to 5 of a SchemaElement are its repetition, name and children.
    start = b"\x48\x06schema\x15\x02\0"
    inner = b"\x35%c\x18\x01a\x15\x02\0" % (2 * repetition)
    leaf = b"\x15\x0c\x25\x02\x18\x06prompt\0"
    count, size = depth + 2, b""
    while count > 127:
        size, count = size + bytes([count & 127 | 128]), count >> 7
    schema = size + bytes([count]) + start + inner * depth + leaf
    # Fields 1 to 4 of the file: version 1, the schema, no rows, no row groups.
    footer = b"\x15\x02\x19\xfc" + schema + b"\x16\0\x19\x0c\0"
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _gzip_uploads() -> Iterator[Upload]:
    packed = gzip.compress(lines(*GOOD).encode(), mtime=0)
    for name, content in {
        "good": packed,
        "cut off": packed[:-10],
        "wrong checksum": packed[:-8] + b"\0" * 8,
        "no gzip": b"plain text",
        "twice": gzip.compress(packed, mtime=0),
        "text behind": packed + b"behind",
        "zeros": gzip.compress(b"\0" * 2_000_000, mtime=0),
        "nothing": gzip.compress(b"", mtime=0),
    }.items():
        for filename in ("rows.jsonl.gz", "rows.csv.gz"):
            yield Upload(f"gzip: {name} as {filename}", filename, content)


def _mutated_uploads() -> Iterator[Upload]:
    """Yield good files of every format with bytes changed, removed and repeated at random."""
    draw = random.Random(SEED)
    chats = lines(*({"messages": chat(f"Hi {number}", "Hello")} for number in range(8)))
    sources = {
        "rows.jsonl": lines(*GOOD).encode(),
        "rows.json": json.dumps(GOOD).encode(),
        "rows.csv": table_csv(GOOD).encode(),
        "rows.parquet": parquet(GOOD),
        "chats.jsonl": chats.encode(),
    }
    for filename, source in sources.items():
        for number in range(16):
            content = bytearray(source)
            for _ in range(draw.randrange(1, 12)):
                place = draw.randrange(len(content))
                change = draw.randrange(3)
                if change == 0:
                    content[place] = draw.randrange(256)
                elif change == 1:
                    del content[place : place + draw.randrange(1, 9)]
                else:
                    content[place:place] = content[place : place + 40] * draw.randrange(1, 4)
            yield Upload(
                f"mutated: {filename} {number}", filename, bytes(content), {"skip_bad_rows": number % 2 == 0}
            )


def import_upload(upload: Upload, model: str, scratch: Path, loaded: int) -> dict[str, Any]:
    """Import one upload; return its processor time and how it ended. `loaded`: bytes before the first one."""
    folder = scratch / "upload"
    (folder / "out").mkdir(parents=True)
    (folder / "file").write_bytes(upload.content)
    spec = ImportSpec(
        upload=str(folder / "file"), filename=upload.filename, tokenizer=model, **upload.options
    )
    before, code, message = time.process_time(), "", ""
    try:
        run_import(spec, folder / "out", report=lambda event: None)
    except Exception as error:
        ended = failure(error)
        code, message = ended.code, ended.message
    seconds = time.process_time() - before
    path = folder / "out/report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    shutil.rmtree(folder)
    return {
        "name": upload.name,
        "filename": upload.filename,
        "seconds": seconds,
        "code": code,
        "message": message,
        "problems": report.get("problems", []),
        "growth": peak_memory() - loaded,
    }


def main(arguments: list[str]) -> int:
    """Import every n-th upload with the tokenizer in the first folder, and print each result."""
    loaded, every = load_libraries(), int(arguments[2])
    for item in islice(corpus(), 0, None, every):
        print(json.dumps(import_upload(item, arguments[0], Path(arguments[1]), loaded)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
