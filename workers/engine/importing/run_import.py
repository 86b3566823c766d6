"""Turns one upload into an immutable dataset version: canonical Parquet splits, a report and a preview.

Run it as `python -m workers.engine import spec.json out/`. Rows are spooled to disk and read twice, so memory
grows by a few bytes per row. Knows nothing of models but the tokenizer that renders the preview.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.contract.errors import ColumnsUnclear, DataError
from workers.contract.events import Progress, Report, Result, ShouldStop, never_stop, print_event
from workers.contract.specs import ImportSpec
from workers.engine.evaluation.scores import answer_kind
from workers.engine.importing import shapes, split_files, splits, tables
from workers.engine.importing.group_columns import GroupColumnCandidates, check_group_column, read_group
from workers.engine.importing.rows import MAX_COLUMNS, UploadRow, UploadTable
from workers.engine.importing.shapes import Canonical, InvalidRow, Shape
from workers.engine.runtime import stop_if_asked

if TYPE_CHECKING:
    from workers.engine.importing.preview import Preview

MAX_REPORTED_PROBLEMS = 100
MAX_MEASURED_ROWS = 2_000
SHAPE_SAMPLE_ROWS = 100
MIN_ROWS = 3
MAX_ROWS = 5_000_000
# More would take long, and hardly anyone wants to skip them.
MAX_BAD_ROWS = 100_000
# A row takes at least so many bytes of its upload, unless a compressed file repeats it again and again.
MIN_BYTES_PER_ROW, HARMLESS_ROWS = 4, 200_000
ROWS_PER_REPORT = 500


def run_import(
    spec: ImportSpec, out_dir: Path, *, report: Report = print_event, should_stop: ShouldStop = never_stop
) -> None:
    """Import `spec.upload` into `out_dir`. `report.json` is written even if a DataError is raised."""
    scratch = out_dir / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        table = tables.open_table(Path(spec.upload), spec.filename, scratch)
        shape, table = _detect_shape(spec, table, out_dir)
        spool = scratch / "rows"
        findings = _read_rows(table, shape, spool, spec, report, should_stop)
        values = findings.to_report() | {"group_column": spec.group_column}
        _write_json(out_dir / "report.json", values)
        _check_usable(findings, spec)
        values |= _write_splits(findings.fingerprints, spec, spool, out_dir, report, should_stop)
        preview = _render_preview(spec.tokenizer, spool, findings.rows, should_stop)
        values["token_lengths"] = preview.token_lengths()
        values["answers"] = answer_kind(findings.answers) if findings.answers else "none"
        values["warnings"] += preview.warnings
        _write_json(out_dir / "preview.json", preview.rows)
        _write_json(out_dir / "report.json", values)
    finally:
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()
    report(Result({**values, "path": "."}))


@dataclass
class ImportFindings:
    """Counts, problems and row fingerprints of the first pass over an upload."""

    table: UploadTable
    shape: Shape
    rows: int = 0
    bad_rows: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    unused_columns: Counter[str] = field(default_factory=Counter)
    fingerprints: splits.RowFingerprints = field(default_factory=splits.RowFingerprints)
    answers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        used = frozenset((*self.shape.columns, *self.shape.optional_columns))
        self.group_columns = GroupColumnCandidates(used)

    def add_answer(self, value: Canonical) -> None:
        """Keep the first rows' last answers, which decide the metrics that fit."""
        if isinstance(value, list) and len(self.answers) < MAX_MEASURED_ROWS:
            last = value[-1]
            if last.get("role") == "assistant" and isinstance(last.get("content"), str):
                self.answers.append(last["content"])

    def add_unused_columns(self, names: set[str]) -> None:
        """Count the columns that are not used, the first thousand of them."""
        if len(self.unused_columns) > MAX_COLUMNS:
            names &= self.unused_columns.keys()
        self.unused_columns.update(names)

    def add_problem(self, row: UploadRow, problem: InvalidRow) -> None:
        self.bad_rows += 1
        if self.bad_rows > MAX_BAD_ROWS:
            raise DataError(
                f"More than {MAX_BAD_ROWS:,} rows are invalid. The first is row {self.problems[0]['row']}: "
                f"{self.problems[0]['message']} Check that it is the right file."
            )
        if len(self.problems) < MAX_REPORTED_PROBLEMS:
            self.problems.append({"row": row.number, "column": problem.column, "message": problem.message})

    def to_report(self) -> dict[str, Any]:
        unused = ", ".join(f"`{name[:50]}`" for name, _ in self.unused_columns.most_common(10))
        return {
            "shape": self.shape.name,
            "format": self.table.format,
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "total_rows": self.rows + self.bad_rows,
            "problems": self.problems,
            "problem_count": self.bad_rows,
            "columns": list(self.table.columns) or [*self.shape.columns, *sorted(self.unused_columns)[:100]],
            "group_columns": self.group_columns.candidates(),
            "warnings": [f"Not used: {unused}."] if unused else [],
        }


# Shape


def _detect_shape(spec: ImportSpec, table: UploadTable, out_dir: Path) -> tuple[Shape, UploadTable]:
    """Return the shape of the first rows and the table with all rows still to come.

    Raises ColumnsUnclear after writing the columns and five rows to `report.json`, so that the page can ask.
    """
    first = list(itertools.islice(table.rows, SHAPE_SAMPLE_ROWS))
    columns = table.columns or tuple(dict.fromkeys(key for row in first for key in row.values))
    if len(columns) > MAX_COLUMNS:
        raise DataError(
            f"The first {len(first)} rows of {spec.filename} have {len(columns):,} different columns. At "
            f"most {MAX_COLUMNS:,} are read. Put the values into one column, as an object."
        )
    table = UploadTable(table.format, table.columns, table.total, itertools.chain(first, table.rows))
    shape = None
    try:
        if spec.prompt_column or spec.completion_column:
            shape = shapes.shape_from_columns(columns, spec.prompt_column, spec.completion_column)
        elif not columns:
            raise DataError(_no_rows_message(spec.filename, first))
        else:
            shape = _most_frequent_shape(first) or shapes.detect_shape(columns)
        check_group_column(spec.group_column, columns, shape)
    except ColumnsUnclear:
        candidates = GroupColumnCandidates(frozenset())
        for row in first:
            candidates.add(row.values)
        readable = [row.values for row in first if row.values]
        report = {
            "shape": shape.name if shape else "",
            "format": table.format,
            "columns": list(columns),
            "group_columns": candidates.candidates(),
            "first_rows": [{name: _excerpt(row.get(name)) for name in columns} for row in readable[:5]],
            "problems": [],
        }
        _write_json(out_dir / "report.json", report)
        raise
    return shape, table


def _most_frequent_shape(rows: list[UploadRow]) -> Shape | None:
    detected: dict[str, list[Shape]] = {}
    for row in rows:
        with contextlib.suppress(DataError):
            shape = shapes.detect_shape(tuple(row.values))
            detected.setdefault(shape.name, []).append(shape)
    return max(detected.values(), key=len)[-1] if detected else None


def _no_rows_message(filename: str, rows: list[UploadRow]) -> str:
    if not rows:
        return f"{filename} has no rows. Choose a file with at least {MIN_ROWS}."
    problem = rows[0].problem or "It is empty. Write one object with the same columns on each line."
    return f"No row of {filename} can be read. The first is row {rows[0].number}: {problem}"


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text[:200].encode(errors="replace").decode()


# First pass: rows to the spool


def _read_rows(
    table: UploadTable,
    shape: Shape,
    spool: Path,
    spec: ImportSpec,
    report: Report,
    should_stop: ShouldStop,
) -> ImportFindings:
    findings, group_column = ImportFindings(table, shape), spec.group_column
    size = Path(spec.upload).stat().st_size
    max_rows = min(MAX_ROWS, max(HARMLESS_ROWS, size // MIN_BYTES_PER_ROW))
    used = {*shape.columns, *shape.optional_columns, group_column}
    with spool.open("wb") as file:
        for count, row in enumerate(table.rows):
            if count % ROWS_PER_REPORT == 0:
                stop_if_asked(should_stop)
                report(Progress("reading", row.position, table.total))
            if count >= max_rows:
                raise DataError(
                    f"The file has more than {max_rows:,} rows. Split it after row {max_rows:,}, or "
                    "upload it uncompressed."
                )
            try:
                value = shapes.to_canonical(row, shape)
                group = read_group(row.values, group_column) if group_column else None
            except InvalidRow as problem:
                findings.add_problem(row, problem)
                continue
            findings.rows += 1
            findings.add_unused_columns(row.values.keys() - used)
            findings.add_answer(value)
            findings.group_columns.add(row.values)
            content_hash = split_files.write_spooled_row(file, row.number, value)
            findings.fingerprints.add(row.number, content_hash, value, group)
    report(Progress("reading", table.total, table.total))
    return findings


def _check_usable(findings: ImportFindings, spec: ImportSpec) -> None:
    """Raise a DataError if rows are bad and may not be skipped, or if too few are good."""
    total = findings.rows + findings.bad_rows
    if total == 0:
        raise DataError(_no_rows_message(spec.filename, []))
    if findings.bad_rows and (not spec.skip_bad_rows or not findings.rows):
        first = findings.problems[0]
        advice = "Correct them, or skip invalid rows on import."
        if findings.rows < MIN_ROWS:
            advice = "Correct them and upload the file again."
        raise DataError(
            f"Invalid rows: {findings.bad_rows:,} of {total:,}. The first is row {first['row']}: "
            f"{first['message']} {advice}"
        )
    distinct = findings.fingerprints.distinct_rows()
    if distinct < MIN_ROWS:
        rows = "row" if distinct == 1 else "rows"
        raise DataError(
            f"{spec.filename} has {distinct} different good {rows}. Training, validation and test need at "
            f"least one each. Upload {MIN_ROWS} or more; useful datasets start at a few hundred."
        )


# Second pass: the spool to splits and preview


def _write_splits(
    fingerprints: splits.RowFingerprints,
    spec: ImportSpec,
    spool: Path,
    out_dir: Path,
    report: Report,
    should_stop: ShouldStop,
) -> dict[str, Any]:
    """Write the three splits; return their part of the report."""
    report(Progress("comparing"))
    assignment = splits.assign_splits(
        fingerprints,
        seed=spec.seed,
        validation_share=spec.validation_share,
        test_share=spec.test_share,
        group_column=spec.group_column,
        check_stop=lambda: stop_if_asked(should_stop),
    )
    rows = len(assignment.splits)

    def on_row(index: int) -> None:
        if index % ROWS_PER_REPORT == 0:
            stop_if_asked(should_stop)
            report(Progress("writing", index, rows))

    sha256, test_sha256 = split_files.write_splits(
        spool, assignment.splits, assignment.groups, out_dir, on_row
    )
    report(Progress("writing", rows, rows))
    return assignment.report | {"sha256": sha256, "test_sha256": test_sha256}


def _render_preview(tokenizer: str, spool: Path, rows: int, should_stop: ShouldStop) -> Preview:
    """Render the first rows, and measure evenly spaced rows of a long file."""
    # The tokenizer imports torch, which takes seconds that a refused upload need not wait for.
    from workers.engine.importing import preview
    from workers.engine.training.encoding import CanonicalRow

    stride = -(-rows // MAX_MEASURED_ROWS)

    def sample() -> Iterator[CanonicalRow]:
        for index, (number, content) in enumerate(split_files.read_spool(spool)):
            if index < preview.PREVIEW_ROWS or index % stride == 0:
                value = json.loads(content)
                is_chat = isinstance(value, list)
                yield CanonicalRow(number, value if is_chat else None, None if is_chat else value)

    return preview.render_preview(tokenizer, sample(), should_stop)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")
