"""Columns that say which rows belong together: reads the chosen one, and notices others whose values repeat.

Such a column names a document, a customer or a thread. Knows nothing of what becomes of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.contract.errors import ColumnsUnclear
from workers.engine.importing.shapes import InvalidRow, Shape, describe_type

# Enough to see that values repeat, in bounded memory.
MAX_SCANNED_ROWS, MAX_SCANNED_COLUMNS = 50_000, 20
# Fewer values are labels or languages rather than documents; in more than half of the rows nothing repeats.
MIN_DISTINCT_VALUES, MAX_DISTINCT_SHARE = 10, 0.5


def check_group_column(column: str, columns: Sequence[str], shape: Shape) -> None:
    """Refuse a column that is not there, or that is read or learned."""
    if column and column not in columns:
        raise ColumnsUnclear(
            f"There is no column `{column[:50]}` to keep rows together by. Choose among: "
            f"{', '.join(name[:50] for name in columns[:20])}, or none."
        )
    if column in (*shape.columns, *shape.optional_columns):
        raise ColumnsUnclear(
            f"`{column[:50]}` is read or learned, so it cannot say which rows belong together. Choose "
            "another column, or none: rows that ask the same stay together anyway."
        )


def read_group(values: Mapping[str, Any], column: str) -> str:
    """What the chosen column says of a row, as text; InvalidRow where it says nothing."""
    value = values.get(column)
    if isinstance(value, bool | int | float):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise InvalidRow(column, f"`{column}` is {describe_type(value)} here. It must be text or a number.")
    if value is None or not value.strip():
        raise InvalidRow(
            column, f"This row has no `{column}` to keep it together with others by. Fill it in."
        )
    return value.strip()


@dataclass
class GroupColumnCandidates:
    """Counts the different values of columns that nobody reads."""

    read: frozenset[str]
    rows: int = 0
    seen: dict[str, set[int]] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, Any]) -> None:
        """One good row."""
        if self.rows >= MAX_SCANNED_ROWS:
            return
        self.rows += 1
        for name, value in values.items():
            if name in self.read or isinstance(value, bool) or not isinstance(value, str | int):
                continue
            if name not in self.seen:
                if len(self.seen) >= MAX_SCANNED_COLUMNS:
                    continue
                self.seen[name], self.filled[name] = set(), 0
            self.seen[name].add(hash(value))
            self.filled[name] += 1

    def candidates(self) -> list[dict[str, Any]]:
        """Columns that may name documents, {name, values}; those that some row lacks are no help."""
        return [
            {"name": name, "values": len(values)}
            for name, values in self.seen.items()
            if self.filled[name] == self.rows
            and MIN_DISTINCT_VALUES <= len(values) <= MAX_DISTINCT_SHARE * self.rows
        ]
