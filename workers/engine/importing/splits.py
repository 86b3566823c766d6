"""Assigns rows to training, validation and test so that no held-out row leaks into training.

Rows of one group stay in one split. A group is a value of the group column if there is one, else all rows
with the same or nearly the same prompt. With a group column, a training row may still be nearly the same as a
validation or test row of another group: it is left out. Knows no files.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy

from workers.contract.errors import DataError
from workers.contract.specs import SPLITS
from workers.engine.importing.near_duplicates import (
    Hashes,
    Integers,
    NearDuplicates,
    ShingleIndex,
    find_near_duplicates,
    normalise,
    splitmix64,
    text_key,
)
from workers.engine.importing.shapes import Canonical
from workers.engine.importing.split_files import SplitCodes

TRAIN, VALIDATION, TEST = range(len(SPLITS))
LEFT_OUT = len(SPLITS)
MAX_EXAMPLE_GROUPS, MAX_EXAMPLE_ROWS = 5, 4


@dataclass
class RowFingerprints:
    """The number and the eight-byte keys of each row that decide its group and its split."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    content_hashes: bytearray = field(default_factory=bytearray)
    prompt_keys: bytearray = field(default_factory=bytearray)
    row_keys: bytearray = field(default_factory=bytearray)
    group_keys: bytearray = field(default_factory=bytearray)
    shingles: ShingleIndex = field(default_factory=ShingleIndex)

    def add(self, number: int, content_hash: bytes, value: Canonical, group: str | None) -> None:
        """Add one row. `content_hash`: eight bytes; `group`: the row's value of the group column."""
        prompt, answer = (normalise(text) for text in split_prompt_and_answer(value))
        self.numbers.append(number)
        self.content_hashes += content_hash
        self.prompt_keys += text_key(prompt)
        self.row_keys += text_key(prompt, answer)
        self.shingles.add(prompt)
        if group is not None:
            self.group_keys += hashlib.blake2b(group.encode(), digest_size=8).digest()

    def distinct_rows(self) -> int:
        return len(numpy.unique(_to_array(self.content_hashes)))


@dataclass(frozen=True)
class SplitAssignment:
    """`splits` [rows]: an index of SPLITS, or LEFT_OUT; `groups` [rows]: number of the group's first row."""

    splits: SplitCodes
    groups: Integers
    report: dict[str, Any]


def split_prompt_and_answer(value: Canonical) -> tuple[str, str]:
    """Return all text before the last answer, and that answer. Plain text is all prompt."""
    if isinstance(value, str):
        return value, ""
    last = max(place for place, message in enumerate(value) if message["role"] == "assistant")
    return "\n".join(message["content"] for message in value[:last]), value[last]["content"]


def assign_splits(
    fingerprints: RowFingerprints,
    *,
    seed: int,
    validation_share: float,
    test_share: float,
    group_column: str = "",
    check_stop: Callable[[], None],
) -> SplitAssignment:
    """Draw the splits by seed, whole groups at a time. `check_stop` may raise."""
    row_keys = _to_array(fingerprints.row_keys)
    duplicates = find_near_duplicates(
        fingerprints.shingles, _to_array(fingerprints.prompt_keys), row_keys, check_stop
    )
    similar_groups = groups = duplicates.row_groups()
    if group_column:
        groups = numpy.unique(_to_array(fingerprints.group_keys), return_inverse=True)[1]
    count = int(groups.max()) + 1
    if count < len(SPLITS):
        raise DataError(_too_few_groups(count, group_column))
    # A group is drawn by its content alone, so that it keeps its split when other rows are added.
    smallest = numpy.full(count, numpy.iinfo(numpy.uint64).max, dtype=numpy.uint64)
    numpy.minimum.at(smallest, groups, _to_array(fingerprints.content_hashes))
    drawn = draw_splits(_seeded_hashes(smallest, seed)[groups], validation_share, test_share)
    splits = _leave_out_similar(drawn, duplicates)
    if numpy.bincount(splits, minlength=len(SPLITS))[: len(SPLITS)].min() == 0:
        raise DataError(
            "Too many rows are nearly the same as rows of another group. Leaving them out would empty the "
            "training or validation split. Choose another group column, or none."
        )
    numbers = numpy.array(fingerprints.numbers, dtype=numpy.int64)
    first = numpy.full(count, numpy.iinfo(numpy.int64).max)
    numpy.minimum.at(first, groups, numbers)
    left_out = {
        SPLITS[code]: int(((drawn == code) & (splits == LEFT_OUT)).sum()) for code in (TRAIN, VALIDATION)
    }
    similar = _summarise_near_duplicates(similar_groups, numbers)
    notes = [_group_column_note(group_column, numpy.bincount(groups))] if group_column else []
    report = {
        "duplicates": int(len(row_keys) - len(numpy.unique(row_keys))),
        "splits": {name: int((splits == code).sum()) for code, name in enumerate(SPLITS)},
        "groups": {name: len(numpy.unique(groups[splits == code])) for code, name in enumerate(SPLITS)},
        "left_out": left_out,
        "near_duplicates": similar,
        "split_notes": notes + _near_duplicate_notes(similar, left_out, duplicates.is_sampled, group_column),
    }
    return SplitAssignment(splits, first[groups], report)


def _to_array(keys: bytearray) -> Hashes:
    return numpy.frombuffer(bytes(keys), dtype="<u8").astype(numpy.uint64)


def _leave_out_similar(drawn: SplitCodes, duplicates: NearDuplicates) -> SplitCodes:
    """Leave out training rows similar to held-out rows, and validation rows similar to test rows."""
    splits = drawn.copy()
    like_test = duplicates.similar_rows(drawn == TEST)
    like_validation = duplicates.similar_rows(drawn == VALIDATION)
    splits[(drawn == VALIDATION) & like_test] = LEFT_OUT
    splits[(drawn == TRAIN) & (like_test | like_validation)] = LEFT_OUT
    return splits


def _seeded_hashes(hashes: Hashes, seed: int) -> Hashes:
    return splitmix64(hashes ^ numpy.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF))


def draw_splits(keys: Hashes, validation_share: float, test_share: float) -> SplitCodes:
    """Return [rows] TRAIN, VALIDATION or TEST. Rows with one key stay together; no split is empty."""
    _, inverse, counts = numpy.unique(keys, return_inverse=True, return_counts=True)
    codes = numpy.zeros(len(counts), dtype=numpy.uint8)
    for code, share in ((TEST, test_share), (VALIDATION, validation_share)):
        free = numpy.flatnonzero(codes == TRAIN)
        # The keys are random, so the first groups in their order are a random draw.
        taken = _take_groups(counts[free], max(1, round(share * len(keys))), max_groups=len(free) - code)
        codes[free[taken or [int(counts[free].argmin())]]] = code
    return codes[inverse]


def _take_groups(counts: Integers, rows: int, max_groups: int) -> list[int]:
    """Return the positions of the first groups that fit into `rows` rows together."""
    taken: list[int] = []
    for position, count in enumerate(counts.tolist()):
        if count <= rows and len(taken) < max_groups:
            taken.append(position)
            rows -= count
        if not rows:
            break
    return taken


# Texts of the report


def _too_few_groups(count: int, group_column: str) -> str:
    if group_column:
        values = "value" if count == 1 else "different values"
        return (
            f"`{group_column[:50]}` has {count} {values}, and rows with one value stay in one split. "
            f"Training, validation and test need one value each. Choose a column with {len(SPLITS)} or more "
            "values, or none."
        )
    return (
        f"The file has only {count} different prompts, and rows with nearly the same prompt stay in one "
        f"split. Training, validation and test need at least one each. Add rows with other prompts."
    )


def _summarise_near_duplicates(groups: Integers, numbers: Integers) -> dict[str, Any]:
    """Count the rows and groups with similar prompts, and list the row numbers of some."""
    sizes = numpy.bincount(groups)
    rows = numpy.flatnonzero(sizes[groups] > 1)
    first = rows[numpy.sort(numpy.unique(groups[rows], return_index=True)[1])][:MAX_EXAMPLE_GROUPS]
    return {
        "rows": len(rows),
        "groups": int((sizes > 1).sum()),
        "largest": int(sizes.max()) if len(rows) else 0,
        "examples": [numbers[rows[groups[rows] == groups[row]]][:MAX_EXAMPLE_ROWS].tolist() for row in first],
    }


def _group_column_note(column: str, sizes: Integers) -> str:
    return (
        f"Rows with the same `{column[:50]}` stay together in one split: {len(sizes):,} different values, "
        f"the most frequent one in {sizes.max():,} {'row' if sizes.max() == 1 else 'rows'}."
    )


def _near_duplicate_notes(
    similar: dict[str, Any], left_out: dict[str, int], is_sampled: bool, group_column: str
) -> list[str]:
    notes = []
    if similar["rows"]:
        example = " and ".join(f"{number:,}" for number in similar["examples"][0][:2])
        note = (
            f"{similar['rows']:,} rows have the same or nearly the same prompt as another row, for example "
            f"rows {example}."
        )
        if not group_column:
            note += " Such rows stay together in one split, so that no test prompt appears in training."
        notes.append(note)
    for split, held_out in (("train", "a validation or test row"), ("validation", "a test row")):
        if count := left_out[split]:
            rows = "row was" if count == 1 else "rows were"
            name = "training" if split == "train" else split
            notes.append(
                f"{count:,} {rows} left out of the {name} split: nearly the same as {held_out} of another "
                "group."
            )
    if is_sampled:
        notes.append("The file is so large that near duplicates were searched in a sample of its text.")
    return notes
