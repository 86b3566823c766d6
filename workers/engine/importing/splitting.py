"""Divides rows into training, validation and test, so that no test row was learned under another guise.

Rows that belong together stay on one side: those of one document or customer where a column names it, else
those that ask the same or nearly the same. Where a column says what belongs together, a training row of one
group may still be nearly the same as a held-out row of another: it is left out. Knows no files.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy
import numpy.typing

from workers.contract.errors import DataError
from workers.contract.specs import SPLITS
from workers.engine.importing.near_duplicates import (
    Hashes,
    NearDuplicates,
    Numbers,
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
EXAMPLES, ROWS_OF_EXAMPLE = 5, 4

Flags = numpy.ndarray[Any, numpy.dtype[numpy.bool_]]


@dataclass
class RowFingerprints:
    """What is kept of each row to tell which ones belong together: its number, and eight bytes per key."""

    numbers: array[int] = field(default_factory=lambda: array("q"))
    contents: bytearray = field(default_factory=bytearray)
    asked: bytearray = field(default_factory=bytearray)
    whole: bytearray = field(default_factory=bytearray)
    named: bytearray = field(default_factory=bytearray)
    wording: ShingleIndex = field(default_factory=ShingleIndex)

    def add(self, number: int, content: bytes, value: Canonical, group: str | None) -> None:
        """One good row: `content` is the start of its hash, `group` what the chosen column says."""
        prompt, answer = (normalise(text) for text in split_prompt_and_answer(value))
        self.numbers.append(number)
        self.contents += content
        self.asked += text_key(prompt)
        self.whole += text_key(prompt, answer)
        self.wording.add(prompt)
        if group is not None:
            self.named += hashlib.blake2b(group.encode(), digest_size=8).digest()


@dataclass(frozen=True)
class SplitAssignment:
    """Where each row goes (an index of SPLITS, or LEFT_OUT), its group, and what the report says of it."""

    splits: SplitCodes
    groups: Numbers
    report: dict[str, Any]


def split_prompt_and_answer(value: Canonical) -> tuple[str, str]:
    """What the last answer is given to, and that answer. A plain text is all prompt."""
    if isinstance(value, str):
        return value, ""
    last = max(place for place, message in enumerate(value) if message["role"] == "assistant")
    return "\n".join(message["content"] for message in value[:last]), value[last]["content"]


def assign_splits(
    keys: RowFingerprints,
    *,
    seed: int,
    validation_share: float,
    test_share: float,
    column: str = "",
    check: Callable[[], None],
) -> SplitAssignment:
    """Draw the splits by seed. `column` names the groups, if a person chose one; `check` may raise."""
    contents, asked, whole = (_read(kept) for kept in (keys.contents, keys.asked, keys.whole))
    near = find_near_duplicates(keys.wording, asked, whole, check)
    groups = numpy.unique(_read(keys.named), return_inverse=True)[1] if column else near.row_groups()
    count = int(groups.max()) + 1
    if count < len(SPLITS):
        raise DataError(_too_few(count, column))
    # A group's random place hangs on its content alone, so a row that stands alone keeps it for ever.
    smallest = numpy.full(count, numpy.iinfo(numpy.uint64).max, dtype=numpy.uint64)
    numpy.minimum.at(smallest, groups, contents)
    places = draw_splits(seeded_hashes(smallest, seed)[groups], validation_share, test_share)
    before = places.copy()
    _leave_out(places, near)
    if numpy.bincount(places, minlength=len(SPLITS))[: len(SPLITS)].min() == 0:
        raise DataError(
            "Too many rows of one group ask nearly the same as rows of another one: without them nothing is "
            "left to train on or to choose by. Choose another column for what belongs together, or none."
        )
    numbers = numpy.array(keys.numbers, dtype=numpy.int64)
    first = numpy.full(count, numpy.iinfo(numpy.int64).max)
    numpy.minimum.at(first, groups, numbers)
    left = {SPLITS[code]: int(((before == code) & (places == LEFT_OUT)).sum()) for code in (0, 1)}
    together = _together(near.row_groups(), numbers)
    named = numpy.bincount(groups) if column else numpy.zeros(0, dtype=numpy.int64)
    report = {
        "duplicates": int(len(whole) - len(numpy.unique(whole))),
        "splits": {name: int((places == code).sum()) for code, name in enumerate(SPLITS)},
        "groups": {name: len(numpy.unique(groups[places == code])) for code, name in enumerate(SPLITS)},
        "left_out": left,
        "near_duplicates": together,
        "split_notes": [
            *([_of_column(column, named)] if column else []),
            *_of_near(together, left, near, column),
        ],
    }
    return SplitAssignment(places, first[groups], report)


def _read(kept: bytearray) -> Hashes:
    return numpy.frombuffer(bytes(kept), dtype="<u8").astype(numpy.uint64)


def _leave_out(places: SplitCodes, near: NearDuplicates) -> None:
    """Take out training rows that a held-out row resembles, and validation rows like a test row."""
    like_test = near.similar_rows(places == TEST)
    like_validation = near.similar_rows(places == VALIDATION)
    places[(places == VALIDATION) & like_test] = LEFT_OUT
    places[(places == TRAIN) & (like_test | like_validation)] = LEFT_OUT


def seeded_hashes(hashes: Hashes, seed: int) -> Hashes:
    """A pseudo-random number per hash and seed."""
    return splitmix64(hashes ^ numpy.uint64((seed + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF))


def draw_splits(keys: Hashes, validation_share: float, test_share: float) -> SplitCodes:
    """For each row 0 (train), 1 (validation) or 2 (test). Rows of one key stay together; none is empty."""
    _, inverse, counts = numpy.unique(keys, return_inverse=True, return_counts=True)
    groups = numpy.zeros(len(counts), dtype=numpy.uint8)
    for code, share in ((TEST, test_share), (VALIDATION, validation_share)):
        free = numpy.flatnonzero(groups == 0)
        # Sorted by key is in random order, so taking the first that fit is drawing without a second seed.
        taken = _take_groups(counts[free], max(1, round(share * len(keys))), most=len(free) - code)
        groups[free[taken or [int(counts[free].argmin())]]] = code
    return groups[inverse]


def _take_groups(counts: numpy.typing.NDArray[numpy.int64], wanted: int, most: int) -> list[int]:
    """Positions of the first groups that together have at most `wanted` rows, and are `most` at most."""
    taken: list[int] = []
    for position, count in enumerate(counts.tolist()):
        if count <= wanted and len(taken) < most:
            taken.append(position)
            wanted -= count
        if not wanted:
            break
    return taken


# In words


def _too_few(count: int, column: str) -> str:
    if column:
        values = "value" if count == 1 else "different values"
        return (
            f"`{column[:50]}` has {count} {values}, and rows of one value stay together. Training, "
            f"validation and test need one each at least: choose a column with {len(SPLITS)} or more values, "
            "or none."
        )
    return (
        f"The rows ask only {count} different things, and rows that ask nearly the same stay together. "
        f"Training, validation and test need one each at least, so give {len(SPLITS)} or more."
    )


def _together(alike: Numbers, numbers: Numbers) -> dict[str, Any]:
    """Rows that ask the same or nearly the same as another one: how many, in how many groups, and some."""
    sizes = numpy.bincount(alike)
    several = numpy.flatnonzero(sizes > 1)
    rows = numpy.flatnonzero(sizes[alike] > 1)
    first = rows[numpy.sort(numpy.unique(alike[rows], return_index=True)[1])][:EXAMPLES]
    examples = [numbers[rows[alike[rows] == alike[row]]][:ROWS_OF_EXAMPLE].tolist() for row in first]
    return {
        "rows": int(sizes[several].sum()),
        "groups": len(several),
        "largest": int(sizes[several].max()) if len(several) else 0,
        "examples": examples,
    }


def _of_column(column: str, sizes: Numbers) -> str:
    return (
        f"Rows with the same `{column[:50]}` stay together in one split: {len(sizes):,} different values, "
        f"the most frequent one in {sizes.max():,} {'row' if sizes.max() == 1 else 'rows'}."
    )


def _of_near(together: dict[str, Any], left: dict[str, int], near: NearDuplicates, column: str) -> list[str]:
    said = []
    if together["rows"]:
        example = " and ".join(f"{number:,}" for number in together["examples"][0][:2])
        said.append(
            f"{together['rows']:,} rows ask the same or nearly the same as another row, for example rows "
            f"{example}."
            + (
                ""
                if column
                else " Such rows stay together in one split, so no test row was seen in training."
            )
        )
    for split, purpose in (("train", "training"), ("validation", "validation")):
        if count := left[split]:
            rows = "row is" if count == 1 else "rows are"
            held = "a held-out row" if split == "train" else "a test row"
            said.append(
                f"{count:,} {rows} nearly the same as {held} of another group and left out of {purpose}."
            )
    if near.sampled:
        said.append("The file holds so much text that a sample of its wording was compared.")
    return said
