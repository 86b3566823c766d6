"""Keeps groups and near duplicates in one split, and freezes the test rows by a checksum."""

from __future__ import annotations

from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.engine.importing.uploads import ROWS, Importer, asked_twice, lines, parquet, split_of, table_csv
from workers.contract.errors import ColumnsUnclear, DataError
from workers.engine.importing.split_files import rows_sha256


def test_seed_decides_the_splits(load: Importer) -> None:
    first, again, other = (load(lines(*ROWS), seed=seed)["sha256"] for seed in (1, 1, 2))
    assert first == again != other


def test_near_duplicates_share_a_split_and_are_reported(load: Importer) -> None:
    values = load(lines(*ROWS, *asked_twice(30)))
    where = split_of(load)
    assert all(where[row] == where[row + 1] for row in range(41, 101, 2))
    assert set(where.values()) == {"train", "validation", "test"}
    assert values["near_duplicates"]["rows"] == 60
    assert values["near_duplicates"]["groups"] == 30
    assert values["near_duplicates"]["examples"][0] == [41, 42]
    assert (
        "60 rows have the same or nearly the same prompt as another row, for example rows 41 and 42."
        in (values["split_notes"][0])
    )
    assert [row["group"] for row in load.rows()[38:44]] == [39, 40, 41, 41, 43, 43]


def test_row_keeps_its_split_when_copies_of_others_are_added(load: Importer) -> None:
    load(lines(*ROWS))
    before = split_of(load)
    load(lines(*ROWS, ROWS[0], {**ROWS[0], "prompt": "COLOUR  of 0"}))
    after = split_of(load)
    assert after[41] == after[42] == after[1]
    assert sum(before[row] != after[row] for row in range(1, 41)) <= 3, (
        "the shares of 42 rows differ a little"
    )


def test_rows_of_one_group_share_a_split(load: Importer) -> None:
    rows = [{**row, "document": f"d{place // 4}"} for place, row in enumerate(ROWS)]
    values = load(table_csv(rows), "rows.csv", group_column="document")
    where = split_of(load)
    homes = {
        place // 4: {where[row] for row in range(4 * (place // 4) + 1, place + 2)} for place in range(40)
    }
    assert all(len(names) == 1 for names in homes.values())
    assert values["group_column"] == "document"
    assert values["groups"] == {"train": 8, "validation": 1, "test": 1}
    assert values["split_notes"] == [
        "Rows with the same `document` stay together in one split: 10 different values, the most frequent "
        "one in 4 rows."
    ]
    assert {row["group"] for row in load.rows()} == set(range(1, 41, 4))
    assert "document" not in " ".join(values["warnings"])


def test_a_group_may_be_a_number(load: Importer) -> None:
    rows: list[dict[str, Any]] = [{**row, "thread": place // 4} for place, row in enumerate(ROWS)]
    typed = load(parquet(rows), "rows.parquet", group_column="thread")
    as_text = load(
        table_csv([{**row, "thread": str(row["thread"])} for row in rows]), "r.csv", group_column="thread"
    )
    assert typed["sha256"] == as_text["sha256"]


def test_groups_that_leave_nothing_to_train_on_are_refused(load: Importer) -> None:
    rows = [
        {"prompt": f"How is thing {n % 10} made?", "completion": f"so {n}", "who": f"c{n // 10}"}
        for n in range(40)
    ]
    with pytest.raises(DataError, match="Choose another group column, or none"):
        load(lines(*rows), group_column="who")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            "nothing",
            "The file has no group column `nothing`. Choose one of prompt, completion",
        ),
        ("prompt", "`prompt` holds the prompt or the answer"),
        ("completion", "`completion` holds the prompt or the answer"),
    ],
)
def test_unusable_group_column_is_refused(load: Importer, column: str, said: str) -> None:
    with pytest.raises(ColumnsUnclear, match=said):
        load(lines(*ROWS), group_column=column)
    assert load.report()["shape"] == "prompt_completion"
    assert load.report()["columns"] == ["prompt", "completion"]


def test_too_few_groups_are_refused(load: Importer) -> None:
    rows = [{**row, "half": place % 2} for place, row in enumerate(ROWS)]
    with pytest.raises(DataError, match="`half` has 2 different values"):
        load(lines(*rows), group_column="half")


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "no `who`"), (["a"], "`who` is a list here. It must be text or a number.")],
)
def test_row_without_a_group_is_reported(load: Importer, value: Any, said: str) -> None:
    rows: list[dict[str, Any]] = [{**row, "who": f"c{place}"} for place, row in enumerate(ROWS)]
    rows[4]["who"] = value
    with pytest.raises(DataError, match="Invalid rows: 1 of 40"):
        load(lines(*rows), group_column="who")
    assert load.report()["problems"][0]["column"] == "who"
    assert said in load.report()["problems"][0]["message"]


def test_repeating_columns_are_suggested_as_groups(load: Importer) -> None:
    rows = [
        {**row, "customer": f"c{place // 4}", "id": place, "kind": "mail", "flag": place % 3 == 0}
        for place, row in enumerate(ROWS)
    ]
    assert load(lines(*rows))["group_columns"] == [{"name": "customer", "values": 10}]


def test_group_columns_are_suggested_for_unknown_columns_too(load: Importer) -> None:
    content = "sentence,label,author\n" + "".join(f"s{n},{n % 2},a{n // 4}\n" for n in range(60))
    with pytest.raises(ColumnsUnclear):
        load(content, "reviews.csv")
    assert load.report()["group_columns"] == [{"name": "author", "values": 15}]


def test_test_rows_have_their_own_checksum(load: Importer) -> None:
    first = load(lines(*ROWS))
    stored = pyarrow.parquet.read_table(load.out / "test.parquet")
    assert first["test_sha256"] == rows_sha256(stored)
    other = load(lines(*ROWS[:-1], {**ROWS[-1], "completion": "another shade"}))
    moved = load(lines(*ROWS), seed=7)
    assert len({first["test_sha256"], moved["test_sha256"]}) == 2
    assert first["sha256"] != other["sha256"]


def test_plain_text_has_a_checksum(load: Importer) -> None:
    values = load(lines(*({"text": f"Seite {number} “ü”", "id": number} for number in range(5))))
    assert values["test_sha256"] == rows_sha256(pyarrow.parquet.read_table(load.out / "test.parquet"))
