"""Reads the group column of a row, and proposes columns whose values repeat (a document, customer or thread).

Knows nothing of splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.contract.errors import ColumnsUnclear
from workers.engine.importing.shapes import InvalidRow, Shape, describe_type

# Bounds of the memory that the search takes.
MAX_SCANNED_ROWS, MAX_SCANNED_COLUMNS = 50_000, 20
# Fewer values are labels or languages, not documents; with more, hardly any value repeats.
MIN_DISTINCT_VALUES, MAX_DISTINCT_SHARE = 10, 0.5


def check_group_column(column: str, columns: Sequence[str], shape: Shape) -> None:
    """Raise ColumnsUnclear if the column is missing or holds the prompt or the answer."""
    if column and column not in columns:
        raise ColumnsUnclear(
            f"The file has no group column `{column[:50]}`. Choose one of "
            f"{', '.join(name[:50] for name in columns[:20])}, or none."
        )
    if column in (*shape.columns, *shape.optional_columns):
        raise ColumnsUnclear(
            f"`{column[:50]}` holds the prompt or the answer, so it cannot be the group column. Choose "
            "another column, or none: rows with nearly the same prompt stay in one split anyway."
        )


def read_group(values: Mapping[str, Any], column: str) -> str:
    """Return the row's value of the group column as text. Raises InvalidRow if it is missing."""
    value = values.get(column)
    if isinstance(value, bool | int | float):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise InvalidRow(column, f"`{column}` is {describe_type(value)} here. It must be text or a number.")
    if value is None or not value.strip():
        raise InvalidRow(column, f"This row has no `{column}`, its group. Fill it in or remove the row.")
    return value.strip()


@dataclass
class GroupColumnCandidates:
    """Counts of the distinct values of all columns but those that hold the prompt or the answer."""

    excluded: frozenset[str]
    rows: int = 0
    value_hashes: dict[str, set[int]] = field(default_factory=dict)
    filled_rows: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, Any]) -> None:
        if self.rows >= MAX_SCANNED_ROWS:
            return
        self.rows += 1
        for name, value in values.items():
            if name in self.excluded or isinstance(value, bool) or not isinstance(value, str | int):
                continue
            if name not in self.value_hashes:
                if len(self.value_hashes) >= MAX_SCANNED_COLUMNS:
                    continue
                self.value_hashes[name], self.filled_rows[name] = set(), 0
            self.value_hashes[name].add(hash(value))
            self.filled_rows[name] += 1

    def candidates(self) -> list[dict[str, Any]]:
        """Return the possible group columns as {name, values}; each is filled in every row."""
        max_values = MAX_DISTINCT_SHARE * self.rows
        return [
            {"name": name, "values": len(values)}
            for name, values in self.value_hashes.items()
            if self.filled_rows[name] == self.rows and MIN_DISTINCT_VALUES <= len(values) <= max_values
        ]
