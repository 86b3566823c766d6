"""Columns that say which rows belong together: reads the chosen one, and notices others whose values repeat.

Such a column names a document, a customer or a thread. Knows nothing of what becomes of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.engine.shapes import BadRow, Shape, kind_of
from workers.errors import ColumnsUnclear

# Enough to see that values repeat, in bounded memory.
ROWS_LOOKED_AT, COLUMNS_LOOKED_AT = 50_000, 20
# Fewer values are labels or languages rather than documents; in more than half of the rows nothing repeats.
FEWEST_VALUES, MOST_SHARE = 10, 0.5


def check_column(column: str, columns: Sequence[str], shape: Shape) -> None:
    """Refuse a column that is not there, or that is read or learned."""
    if column and column not in columns:
        raise ColumnsUnclear(
            f"There is no column `{column[:50]}` to keep rows together by. Choose among: "
            f"{', '.join(name[:50] for name in columns[:20])}, or none."
        )
    if column in (*shape.columns, *shape.more):
        raise ColumnsUnclear(
            f"`{column[:50]}` is read or learned, so it cannot say which rows belong together. Choose "
            "another column, or none: rows that ask the same stay together anyway."
        )


def group_of(values: Mapping[str, Any], column: str) -> str:
    """What the chosen column says of a row, as text; BadRow where it says nothing."""
    value = values.get(column)
    if isinstance(value, bool | int | float):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise BadRow(column, f"`{column}` is {kind_of(value)} here. It must be text or a number.")
    if value is None or not value.strip():
        raise BadRow(column, f"This row has no `{column}` to keep it together with others by. Fill it in.")
    return value.strip()


@dataclass
class Repeats:
    """Counts the different values of columns that nobody reads."""

    read: frozenset[str]
    rows: int = 0
    seen: dict[str, set[int]] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, Any]) -> None:
        """One good row."""
        if self.rows >= ROWS_LOOKED_AT:
            return
        self.rows += 1
        for name, value in values.items():
            if name in self.read or isinstance(value, bool) or not isinstance(value, str | int):
                continue
            if name not in self.seen:
                if len(self.seen) >= COLUMNS_LOOKED_AT:
                    continue
                self.seen[name], self.filled[name] = set(), 0
            self.seen[name].add(hash(value))
            self.filled[name] += 1

    def found(self) -> list[dict[str, Any]]:
        """Columns that may name documents, {name, values}; those that some row lacks are no help."""
        return [
            {"name": name, "values": len(values)}
            for name, values in self.seen.items()
            if self.filled[name] == self.rows and FEWEST_VALUES <= len(values) <= MOST_SHARE * self.rows
        ]
