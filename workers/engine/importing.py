"""Turns one upload into an immutable dataset version: canonical Parquet splits, a report and a preview.

Run it as `python -m workers.engine import spec.json out/`. Rows are spooled to disk and read twice, so memory
grows by a few bytes per row only. Copies of a row always share a split, so none leaks from train into
validation or test; nothing is dropped. Knows nothing of models but the tokenizer that renders the preview.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy
import numpy.typing
import pyarrow
import pyarrow.parquet

from workers.engine import reading, shapes
from workers.engine.rows import Row, Table
from workers.engine.runtime import stop_if_asked
from workers.engine.scores import answer_kind
from workers.engine.shapes import BadRow, Canonical, Shape
from workers.errors import ColumnsUnclear, DataError
from workers.events import Progress, Report, Result, ShouldStop, never_stop, print_event
from workers.specs import SPLITS, ImportSpec

if TYPE_CHECKING:
    from workers.engine.preview import Preview

KEPT_PROBLEMS = 100
MEASURED_ROWS = 2_000
PROBED_ROWS = 100
MIN_ROWS = 3
ROWS_PER_GROUP = 2_000
ROWS_PER_REPORT = 500
SCHEMA = pyarrow.schema(
    [("row", pyarrow.int64()), ("messages", pyarrow.string()), ("text", pyarrow.string())]
)

Hashes = numpy.ndarray[Any, numpy.dtype[numpy.uint64]]
Places = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]


@dataclass
class Findings:
    """What the first pass saw: problems, counts, and one 64-bit hash of each good row's content."""

    table: Table
    shape: Shape
    rows: int = 0
    bad_rows: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    hashes: bytearray = field(default_factory=bytearray)
    answers: list[str] = field(default_factory=list)

    def add_answer(self, value: Canonical) -> None:
        """Keep the first rows' last answers; they tell which scores fit. Plain text has none."""
        if isinstance(value, list) and len(self.answers) < MEASURED_ROWS:
            last = value[-1]
            if last.get("role") == "assistant" and isinstance(last.get("content"), str):
                self.answers.append(last["content"])

    def add_problem(self, row: Row, problem: BadRow) -> None:
        self.bad_rows += 1
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append({"row": row.number, "column": problem.column, "message": problem.message})

    def report(self) -> dict[str, Any]:
        """The report as far as the first pass knows it."""
        unused = ", ".join(f"`{name[:50]}`" for name, _ in self.unused.most_common(10))
        return {
            "shape": self.shape.name,
            "format": self.table.format,
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "total_rows": self.rows + self.bad_rows,
            "problems": self.problems,
            "problem_count": self.bad_rows,
            "columns": list(self.table.columns) or [*self.shape.columns, *sorted(self.unused)[:100]],
            "warnings": [f"Not used: {unused}."] if unused else [],
        }


def run(
    spec: ImportSpec, out_dir: Path, *, report: Report = print_event, should_stop: ShouldStop = never_stop
) -> None:
    """Import `spec.upload` into `out_dir`, or raise a DataError; `report.json` is written in both cases."""
    scratch = out_dir / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        table = reading.open_table(Path(spec.upload), spec.filename, scratch)
        shape, table = _recognise(spec, table, out_dir)
        spool = scratch / "rows"
        findings = _first_pass(table, shape, spool, report, should_stop)
        values = findings.report()
        _write_json(out_dir / "report.json", values)
        _check(findings, spec)
        keys = _keys(findings.hashes, spec.seed)
        places = assign_splits(keys, spec.validation_share, spec.test_share)
        values["duplicates"] = int(len(keys) - len(numpy.unique(keys)))
        values["splits"] = {name: int((places == code).sum()) for code, name in enumerate(SPLITS)}
        values["sha256"] = _write_splits(spool, places, out_dir, report, should_stop)
        rendered = _render(spec.tokenizer, spool, findings.rows, should_stop)
        values["token_lengths"] = rendered.token_lengths()
        values["answers"] = answer_kind(findings.answers) if findings.answers else "none"
        values["warnings"] += rendered.warnings
        _write_json(out_dir / "preview.json", rendered.rows)
        _write_json(out_dir / "report.json", values)
    finally:
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()
    report(Result({**values, "path": "."}))


# First pass: rows to the spool


def _recognise(spec: ImportSpec, table: Table, out_dir: Path) -> tuple[Shape, Table]:
    """The shape of the first rows. Where nobody can say, the columns and five rows are left for the page."""
    first = list(itertools.islice(table.rows, PROBED_ROWS))
    columns = table.columns or _columns(first)
    table = Table(table.format, table.columns, table.total, itertools.chain(first, table.rows))
    try:
        if spec.prompt_column or spec.completion_column:
            return shapes.mapped(columns, spec.prompt_column, spec.completion_column), table
        if not columns:
            raise DataError(_nothing_read(spec.filename, first))
        return _voted(first) or shapes.recognise(columns), table
    except ColumnsUnclear:
        shown = [{name: _shown(row.values.get(name)) for name in columns} for row in first if row.values][:5]
        _write_json(
            out_dir / "report.json",
            {
                "shape": "",
                "format": table.format,
                "columns": list(columns),
                "first_rows": shown,
                "problems": [],
            },
        )
        raise


def _columns(rows: list[Row]) -> tuple[str, ...]:
    """All keys of the first rows, in the order of their appearance."""
    return tuple(dict.fromkeys(key for row in rows for key in row.values))


def _voted(rows: list[Row]) -> Shape | None:
    """The shape that most of the first rows have, each judged by its own keys."""
    votes: Counter[str] = Counter()
    found = {}
    for row in rows:
        with contextlib.suppress(DataError):
            shape = shapes.recognise(tuple(row.values))
            votes[shape.name] += 1
            found[shape.name] = shape
    return found[votes.most_common(1)[0][0]] if votes else None


def _nothing_read(filename: str, rows: list[Row]) -> str:
    if not rows:
        return f"{filename} has no rows. Choose a file with at least {MIN_ROWS}."
    return f"No row of {filename} can be read. First: row {rows[0].number}. {rows[0].problem}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:200].encode(errors="replace").decode()


def _first_pass(table: Table, shape: Shape, spool: Path, report: Report, should_stop: ShouldStop) -> Findings:
    findings = Findings(table, shape)
    read = {*shape.columns, *shape.more}
    with spool.open("wb") as file:
        for count, row in enumerate(table.rows):
            if count % ROWS_PER_REPORT == 0:
                stop_if_asked(should_stop)
                report(Progress("reading", row.position, table.total))
            try:
                value = shapes.canonical(row, shape)
            except BadRow as problem:
                findings.add_problem(row, problem)
                continue
            findings.rows += 1
            findings.unused.update(row.values.keys() - read)
            findings.add_answer(value)
            findings.hashes += _spool(file, row.number, value)
    report(Progress("reading", table.total, table.total))
    return findings


def _spool(file: BinaryIO, number: int, value: Canonical) -> bytes:
    """Write one good row as `number TAB canonical JSON`; the first 8 bytes of its hash."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    file.write(b"%d\t%s\n" % (number, content))
    return hashlib.sha256(content).digest()[:8]


def _check(findings: Findings, spec: ImportSpec) -> None:
    total = findings.rows + findings.bad_rows
    if total == 0:
        raise DataError(_nothing_read(spec.filename, []))
    if findings.bad_rows and (not spec.skip_bad_rows or not findings.rows):
        first = findings.problems[0]
        advice = " Correct them, or import the good rows alone." if findings.rows else ""
        raise DataError(
            f"{findings.bad_rows:,} of {total:,} rows cannot be used. First: row {first['row']}. "
            f"{first['message']}{advice}"
        )
    different = len(numpy.unique(numpy.frombuffer(findings.hashes, dtype=numpy.uint64)))
    if different < MIN_ROWS:
        rows = "row" if different == 1 else "rows"
        raise DataError(
            f"{spec.filename} has {different} good {rows} that differ from each other. Training, validation "
            f"and test need one each at least, so give {MIN_ROWS} or more; a few hundred teach something."
        )


# Splits


def _keys(hashes: bytearray, seed: int) -> Hashes:
    """A pseudo-random number per content and seed, equal for equal rows (splitmix64's last steps)."""
    keys = numpy.frombuffer(bytes(hashes), dtype="<u8").astype(numpy.uint64)
    keys = keys ^ numpy.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    keys = (keys ^ (keys >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> numpy.uint64(31))


def assign_splits(keys: Hashes, validation_share: float, test_share: float) -> Places:
    """For each row 0 (train), 1 (validation) or 2 (test). Rows of one key stay together; none is empty."""
    _, inverse, counts = numpy.unique(keys, return_inverse=True, return_counts=True)
    groups = numpy.zeros(len(counts), dtype=numpy.uint8)
    for code, share in ((2, test_share), (1, validation_share)):
        free = numpy.flatnonzero(groups == 0)
        # Sorted by key is in random order, so taking the first that fit is drawing without a second seed.
        taken = _fitting(counts[free], max(1, round(share * len(keys))), most=len(free) - code)
        groups[free[taken or [int(counts[free].argmin())]]] = code
    return groups[inverse]


def _fitting(counts: numpy.typing.NDArray[numpy.int64], wanted: int, most: int) -> list[int]:
    """Positions of the first groups that together have at most `wanted` rows, and are `most` at most."""
    taken: list[int] = []
    for position, count in enumerate(counts.tolist()):
        if count <= wanted and len(taken) < most:
            taken.append(position)
            wanted -= count
        if not wanted:
            break
    return taken


def _write_splits(spool: Path, places: Places, out_dir: Path, report: Report, should_stop: ShouldStop) -> str:
    """Write the three files; SHA-256 over content and split of every row, whatever the format was."""
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_Split(out_dir / f"{name}.parquet")) for name in SPLITS]
        for index, (number, content) in enumerate(_spooled(spool)):
            if index % ROWS_PER_REPORT == 0:
                stop_if_asked(should_stop)
                report(Progress("writing", index, len(places)))
            digest.update(b"%d\t%s\n" % (places[index], content))
            writers[places[index]].add(number, content)
    report(Progress("writing", len(places), len(places)))
    return digest.hexdigest()


class _Split:
    """One Parquet file, written a group of rows at a time."""

    def __init__(self, path: Path) -> None:
        self.writer = pyarrow.parquet.ParquetWriter(path, SCHEMA, compression="zstd")
        self.columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def __enter__(self) -> _Split:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self.writer.close()

    def add(self, number: int, content: bytes) -> None:
        chat = content.startswith(b"[")
        self.columns["row"].append(number)
        self.columns["messages"].append(content.decode() if chat else None)
        self.columns["text"].append(None if chat else json.loads(content))
        if len(self.columns["row"]) >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(pyarrow.table(self.columns, schema=SCHEMA))
        self.columns = {name: [] for name in SCHEMA.names}


def _spooled(spool: Path) -> Iterator[tuple[int, bytes]]:
    with spool.open("rb") as file:
        for line in file:
            number, _, content = line.rstrip(b"\n").partition(b"\t")
            yield int(number), content


# Preview


def _render(tokenizer: str, spool: Path, rows: int, should_stop: ShouldStop) -> Preview:
    """The first rows, and of a long file evenly drawn ones, as the base model reads them."""
    # The tokenizer brings torch along, which costs seconds that a refused upload need not wait for.
    from workers.engine import data, preview

    stride = -(-rows // MEASURED_ROWS)

    def drawn() -> Iterator[data.Row]:
        for index, (number, content) in enumerate(_spooled(spool)):
            if index < preview.PREVIEW_ROWS or index % stride == 0:
                value = json.loads(content)
                chat = isinstance(value, list)
                yield data.Row(number, value if chat else None, None if chat else value)

    return preview.render(tokenizer, drawn(), should_stop)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")
