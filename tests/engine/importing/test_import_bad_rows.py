"""Names each bad row with its column and a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine.importing.uploads import ROWS, Importer, lines, table_csv
from tests.tiny_model import chat
from workers.contract.errors import DataError


def bad(load: Importer, row: Any, good: list[dict[str, Any]] = ROWS) -> dict[str, Any]:
    """Import good rows around one bad row, the third; its problem."""
    text = row if isinstance(row, str) else json.dumps(row)
    values = load(lines(*good[:2]) + text + "\n" + lines(*good[2:]), skip_bad_rows=True)
    assert values["rows"] == len(good)
    assert values["bad_rows"] == values["problem_count"] == 1
    problem = dict(values["problems"][0])
    assert problem["row"] == 3
    return problem


@pytest.mark.parametrize(
    ("row", "column", "said"),
    [
        ({"prompt": "a"}, "completion", "no `completion`. Add it or remove the row."),
        ({"prompt": "a", "completion": None}, "completion", "no `completion`"),
        ({"prompt": "", "completion": "b"}, "prompt", "is empty"),
        ({"prompt": "a", "completion": " \n"}, "completion", "is empty"),
        ({"prompt": "a", "completion": 5}, "completion", "is a number here. It must be text."),
        ({"prompt": ["a"], "completion": "b"}, "prompt", "must be an object with role"),
        ({"prompt": "a", "completion": "b", "tools": [{}]}, "tools", "uses tools"),
        ({"prompt": "a", "completion": "x" * 300_000}, "completion", "300 kB"),
        ({"prompt": "a\0", "completion": "b"}, "", "NUL"),
        ('{"prompt": "a", "completion": "\\ud800"}', "", "surrogate"),
        ('{"prompt": "a", "completion"', "", "not valid JSON"),
        ('{"prompt": NaN, "completion": "b"}', "", "NaN is not a JSON value"),
        ('{"prompt": "a", "prompt": "c", "completion": "b"}', "", "occurs twice"),
        ('{"prompt": ' + "9" * 5000 + ', "completion": "b"}', "", "Exceeds the limit"),
        ('{"prompt": "a", "completion": "b", "\\ud800": 1}', "", "surrogate"),
        ("[1, 2]", "", "not a JSON object"),
        ("[" * 10_000 + "]" * 10_000, "", "nested deeper than 50"),
        (
            {"prompt": "a", "completion": "b", "more": json.loads("[" * 60 + "]" * 60)},
            "",
            "nested deeper than 50",
        ),
        ('{"prompt": "' + "x" * 5_000_000 + '", "completion": "b"}', "", "Line 3 is longer than 1 MB"),
    ],
)
def test_bad_row_is_reported_with_column_and_reason(load: Importer, row: Any, column: str, said: str) -> None:
    problem = bad(load, row)
    assert problem["column"] == column
    assert said in problem["message"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "is text here. It must be a list of messages."),
        ([], "is an empty list"),
        (["hello"], "Message 1 is text"),
        ([{"role": "wizard", "content": "x"}], "has the role `wizard`"),
        ([{"content": "x"}], "has no role"),
        ([{"role": "user", "content": "x"}], "no assistant message to learn from"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}],
            "to learn from",
        ),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 2}], "must be 0"),
        ([{"role": "user", "content": " "}, {"role": "assistant", "content": "y"}], "Message 1 is empty"),
        ([{"role": "user", "content": [{"type": "text"}]}], "is a list. It must be text."),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [1]}],
            "uses tools",
        ),
        ([{"role": "tool", "content": "x"}], "uses tools"),
    ],
)
def test_bad_conversation_is_reported(load: Importer, messages: Any, said: str) -> None:
    good = [{"messages": chat(f"Hi {number}", "Hello")} for number in range(5)]
    problem = bad(load, {"messages": messages}, good)
    assert problem["column"] == "messages"
    assert said in problem["message"]


def test_invalid_utf8_is_reported(load: Importer) -> None:
    content = (
        lines(*ROWS[:2]).encode() + b'{"prompt": "\xff", "completion": "b"}\n' + lines(*ROWS[2:]).encode()
    )
    values = load(content, skip_bad_rows=True)
    assert values["problems"] == [
        {"row": 3, "column": "", "message": "This row is not valid UTF-8. Save the file as UTF-8."}
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"a", "has 1 value for 2 columns"),
        (b"a,b,c", "has 3 values for 2 columns"),
        (b'"a"x,b', "quotation marks"),
        (b"\xff,b", "not valid UTF-8"),
        (b"a\0,b", "NUL"),
        (b"a,", "`completion` is empty"),
        (b"a," + b"x" * 300_000, "longer than 256 kB"),
        (b"a," + b"x" * 2_000_000, "longer than 1 MB"),
        (b'a,"line one\nline two" x', "quotation marks"),
    ],
)
def test_bad_csv_row_does_not_affect_the_next(load: Importer, row: bytes, said: str) -> None:
    good = table_csv(ROWS).encode().splitlines(keepends=True)
    values = load(b"".join(good[:3]) + row + b"\r\n" + b"".join(good[3:]), "rows.csv", skip_bad_rows=True)
    assert values["rows"] == 40
    assert values["problems"][0]["row"] == 3
    assert said in values["problems"][0]["message"]


def test_bad_row_of_a_json_array_is_reported(load: Importer) -> None:
    content = json.dumps([*ROWS, {"prompt": "a\0", "completion": "b"}, ["no", "object"]])
    values = load(content, "rows.json", skip_bad_rows=True)
    assert [problem["row"] for problem in values["problems"]] == [41, 42]


def test_bad_rows_fail_the_import_and_keep_the_report(load: Importer) -> None:
    rows = [*ROWS[:6], {"prompt": "a"}, *ROWS[6:], {"prompt": "b"}]
    with pytest.raises(DataError) as caught:
        load(lines(*rows))
    assert caught.value.message.startswith(
        "Invalid rows: 2 of 42. The first is row 7: This row has no `completion`."
    )
    assert [problem["row"] for problem in load.report()["problems"]] == [7, 42]
    assert not list(load.out.glob("*.parquet"))


def test_message_offers_good_rows_if_there_are_enough(load: Importer) -> None:
    for good, advice in ((3, "skip invalid rows on import."), (2, "Correct them and upload the file again.")):
        with pytest.raises(DataError) as caught:
            load(lines(*ROWS[:good], {"prompt": "a"}))
        assert caught.value.message.endswith(advice)


def test_first_hundred_problems_are_listed_and_all_counted(load: Importer) -> None:
    values = load(lines(*ROWS, *({"prompt": "a"} for _ in range(150))), skip_bad_rows=True)
    assert len(values["problems"]) == 100
    assert values["problem_count"] == 150
    assert values["total_rows"] == 190


def test_file_of_bad_rows_fails_even_if_they_may_be_skipped(load: Importer) -> None:
    with pytest.raises(DataError, match="Invalid rows: 3 of 3"):
        load(lines(*({"prompt": "", "completion": str(number)} for number in range(3))), skip_bad_rows=True)


def test_too_few_different_rows_are_refused(load: Importer) -> None:
    with pytest.raises(DataError, match="has 2 different good rows"):
        load(lines(*[*ROWS[:2]] * 5))
