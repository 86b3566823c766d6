"""Detects the shape of a table and converts its rows to messages or text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine.importing.uploads import ROWS, Importer, lines, parquet, table_csv
from tests.tiny_model import chat
from workers.contract.errors import ColumnsUnclear, DataError

INSTRUCTION = {"instruction": "Translate.", "input": "Haus", "output": "house"}


SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


WEIGHTED = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b", "weight": 0},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d", "weight": 1},
]


@pytest.mark.parametrize(
    ("row", "shape", "messages"),
    [
        ({"messages": chat("Hi", "Hello")}, "messages", chat("Hi", "Hello")),
        ({"messages": WEIGHTED}, "messages", WEIGHTED),
        (
            {"messages": [{"role": "developer", "content": "Be kind."}, *chat("Hi", "Hello")]},
            "messages",
            [{"role": "system", "content": "Be kind."}, *chat("Hi", "Hello")],
        ),
        (
            {
                "prompt": [WEIGHTED[0], {"role": "assistant", "content": "b"}, WEIGHTED[2]],
                "completion": [WEIGHTED[3]],
            },
            "prompt_completion",
            WEIGHTED,
        ),
        (INSTRUCTION, "instruction", chat("Translate.\n\nHaus", "house")),
        ({**INSTRUCTION, "input": ""}, "instruction", chat("Translate.", "house")),
        (SHAREGPT, "sharegpt", chat("Hi", "Hello")),
    ],
)
def test_each_shape_becomes_messages(load: Importer, row: dict[str, Any], shape: str, messages: Any) -> None:
    assert load(lines(row, *_others(row)))["shape"] == shape
    assert load.messages() == messages


def _others(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Two more rows of the same shape, as three different ones are the least."""
    text = json.dumps(row)
    return [
        json.loads(text.replace("He", letter).replace('"d"', f'"{letter}"').replace("house", letter))
        for letter in "xy"
    ]


def test_plain_text_stays_text(load: Importer) -> None:
    assert load(lines(*({"text": f"Page {number}", "id": number} for number in range(5))))["shape"] == "text"
    assert load.rows()[0] == {"row": 1, "messages": None, "text": "Page 0", "group": 1}
    assert load.report()["warnings"] == ["Not used: `id`."]


def test_messages_may_stand_in_a_csv_cell(load: Importer) -> None:
    rows = [{"messages": json.dumps(chat(f"Hi {number}", "Hello"))} for number in range(3)]
    load(table_csv(rows), "rows.csv")
    assert load.messages() == chat("Hi 0", "Hello")


def test_unknown_columns_are_reported_for_the_page(load: Importer) -> None:
    with pytest.raises(ColumnsUnclear, match="`sentence`, `label`") as caught:
        load("sentence,label\ngood,positive\nbad,negative\nfine,positive\n", "reviews.csv")
    assert caught.value.code == "columns_unclear"
    assert load.report()["columns"] == ["sentence", "label"]
    assert load.report()["first_rows"][0] == {"sentence": "good", "label": "positive"}


def test_column_names_ignore_case_and_spaces(load: Importer) -> None:
    rows = [{"Prompt ": f"ask {n}", "COMPLETION": f"say {n}", "Id": str(n)} for n in range(9)]
    values = load(table_csv(rows), "rows.csv")
    assert values["shape"] == "prompt_completion"
    assert values["problem_count"] == 0
    assert [message["content"] for message in load.messages()] == ["ask 0", "say 0"]


def test_problem_names_the_column_in_its_own_spelling(load: Importer) -> None:
    rows = [
        {"Instruction": f"ask {n}", "Input": "", "Output": "" if n == 3 else f"say {n}"} for n in range(9)
    ]
    with pytest.raises(DataError):
        load(lines(*rows), "rows.jsonl")
    problem = load.report()["problems"][0]
    assert (problem["row"], problem["column"]) == (4, "Output")
    assert problem["message"] == "`Output` is empty. Fill it or remove the row."


def test_columns_that_differ_only_in_case_are_refused(load: Importer) -> None:
    rows = [{"Prompt": "a", "PROMPT": "b", "completion": f"say {n}"} for n in range(9)]
    with pytest.raises(DataError, match="match no known format"):
        load(lines(*rows), "rows.jsonl")


def test_most_frequent_shape_applies_to_all_rows(load: Importer) -> None:
    values = load(lines({"messages": chat("Hi", "Hello")}, *ROWS, {"prompt": "a"}), skip_bad_rows=True)
    assert values["shape"] == "prompt_completion"
    assert [problem["row"] for problem in values["problems"]] == [1, 42]


def test_chosen_columns_may_hold_numbers(load: Importer) -> None:
    rows = [{"sentence": f"s{number}", "label": number} for number in range(3)]
    values = load(parquet(rows), "rows.parquet", prompt_column="sentence", completion_column="label")
    assert values["shape"] == "columns"
    assert load.messages() == chat("s0", "0")


def test_an_answer_column_alone_is_plain_text(load: Importer) -> None:
    load("story,label\none,1\ntwo,2\nthree,3\n", "rows.csv", completion_column="story")
    assert load.rows()[0]["text"] == "one"


@pytest.mark.parametrize(
    ("prompt", "completion", "said"),
    [
        ("nothing", "label", "has no column `nothing`"),
        ("sentence", "", "Choose the answer column"),
        ("label", "label", "different"),
    ],
)
def test_wrong_columns_are_refused(load: Importer, prompt: str, completion: str, said: str) -> None:
    with pytest.raises(ColumnsUnclear, match=said):
        load("sentence,label\na,b\n", "rows.csv", prompt_column=prompt, completion_column=completion)


def test_preferences_are_refused(load: Importer) -> None:
    with pytest.raises(DataError, match="Preference training is not supported"):
        load(lines({"prompt": "a", "chosen": "b", "rejected": "c"}))


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"prompt": f"Mail {n}", "completion": "spam" if n % 2 else "ham"} for n in range(20)], "label"),
        ([{"text": f"Some prose, number {n}."} for n in range(20)], "none"),
    ],
)
def test_report_names_the_kind_of_answers(load: Importer, rows: list[dict[str, str]], kind: str) -> None:
    assert load(lines(*rows), "mails.jsonl")["answers"] == kind
