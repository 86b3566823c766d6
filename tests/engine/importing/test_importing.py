"""Importing uploads: shapes, bad rows, splits, hashes and the preview, each with a small real file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.tiny_model import build_tiny_model, chat
from workers.contract.errors import ColumnsUnclear, DataError, ModelError, Stopped
from workers.contract.events import Event, Progress, Result
from workers.contract.specs import ImportSpec
from workers.engine.importing import run_import
from workers.engine.importing.split_files import rows_sha256

ROWS = [{"prompt": f"Colour of {number}?", "completion": f"shade {number}"} for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


class Importer:
    """Writes an upload and imports it into a fresh folder."""

    def __init__(self, tokenizer: Path, folder: Path) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.count = 0
        self.events: list[Event] = []

    def __call__(self, content: bytes | str, name: str = "rows.jsonl", **spec: Any) -> dict[str, Any]:
        self.count += 1
        self.out = self.folder / f"out{self.count}"
        self.out.mkdir()
        upload = self.folder / f"upload{self.count}"
        upload.write_bytes(content.encode() if isinstance(content, str) else content)
        chosen = {"tokenizer": str(self.tokenizer), **spec}
        self.events = []
        run_import.run_import(
            ImportSpec(upload=str(upload), filename=name, **chosen), self.out, report=self.events.append
        )
        result = self.events[-1]
        assert isinstance(result, Result)
        return result.values

    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "report.json").read_text()))

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the three splits in the upload's order."""
        tables = [
            pyarrow.parquet.read_table(self.out / f"{name}.parquet").to_pylist()
            for name in ("train", "validation", "test")
        ]
        return sorted((row for table in tables for row in table), key=lambda row: row["row"])

    def messages(self) -> Any:
        return json.loads(self.rows()[0]["messages"])


@pytest.fixture
def load(tokenizer: Path, tmp_path: Path) -> Importer:
    return Importer(tokenizer, tmp_path)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


# Formats


def test_every_format_gives_the_same_dataset(load: Importer) -> None:
    uploads: dict[str, bytes | str] = {
        "rows.jsonl": lines(*ROWS),
        "array.json": json.dumps(ROWS, indent=2),
        "wrapped.json": json.dumps({"data": ROWS}),
        "lines.json": lines(*ROWS),
        "rows.csv": table_csv(ROWS),
        "semicolon.csv": table_csv(ROWS, ";"),
        "rows.tsv": table_csv(ROWS, "\t"),
        "rows.parquet": parquet(ROWS),
        "rows.jsonl.gz": gzip.compress(lines(*ROWS).encode()),
        "bom.jsonl": b"\xef\xbb\xbf" + lines(*ROWS).encode(),
        "bom.csv": b"\xef\xbb\xbf" + table_csv(ROWS).encode(),
    }
    found = {name: load(content, name) for name, content in uploads.items()}
    assert {values["sha256"] for values in found.values()} == {found["rows.jsonl"]["sha256"]}
    assert {values["rows"] for values in found.values()} == {40}


def test_the_splits_hold_canonical_rows_with_their_numbers(load: Importer) -> None:
    values = load(lines(*ROWS))
    assert values["splits"] == {"train": 32, "validation": 4, "test": 4}
    assert [row["row"] for row in load.rows()] == list(range(1, 41))
    assert load.messages() == chat("Colour of 0?", "shade 0")
    assert load.rows()[0]["text"] is None
    schema = pyarrow.parquet.read_schema(load.out / "train.parquet")
    assert [str(field.type) for field in schema] == ["int64", "string", "string", "int64"]


def test_the_sample_dataset_is_sound(load: Importer) -> None:
    sample = Path("dashboard/samples/support_messages.jsonl")
    content = (Path(__file__).parents[3] / sample).read_bytes()
    values = load(content, sample.name)
    assert values["rows"] == values["total_rows"] >= 640
    assert values["duplicates"] == 0
    assert len(content) < 300_000


def test_a_folder_holds_results_alone(load: Importer) -> None:
    load(gzip.compress(lines(*ROWS).encode()), "rows.jsonl.gz")
    names = {path.name for path in load.out.iterdir()}
    assert names == {"train.parquet", "validation.parquet", "test.parquet", "report.json", "preview.json"}


def test_progress_reaches_its_total(load: Importer) -> None:
    load(lines(*ROWS))
    reading = [event for event in load.events if isinstance(event, Progress) and event.phase == "reading"]
    assert reading[-1].step == reading[-1].total > 0


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"", "rows.jsonl", "is empty"),
        (b" \n \n", "rows.jsonl", "is empty"),
        (b"[]", "rows.json", "no rows"),
        (b'{"data": []}', "rows.json", "no rows"),
        (b"prompt,completion\n", "rows.csv", "has no rows"),
        (bytes(range(256)) * 40, "rows.csv", "is not text, although its name says .csv"),
        (b"\x89PNG\r\n\x1a\n" + b"a" * 99, "rows.csv", "is not text"),
        (b"\x89PNG\r\n\x1a\n" + b"a" * 99, "rows.jsonl", "is not text"),
        (parquet(ROWS), "rows.csv", "is a Parquet file, although"),
        (b"prompt,completion\na,b\n", "rows.parquet", "is no Parquet file"),
        (parquet(ROWS)[:-20], "rows.parquet", "no complete Parquet file"),
        ("prompt,completion\na,b\n".encode("utf-16"), "rows.csv", "UTF-16"),
        (b"PK\x03\x04rest", "rows.zip", "archive"),
        (b"rest", "rows.tar.gz", "archive"),
        (b"PK\x03\x04rest", "rows.xlsx", "spreadsheet"),
        (b"hello", "rows.exe", "no known ending"),
        (gzip.compress(lines(*ROWS).encode())[:-20], "rows.jsonl.gz", "no complete gzip"),
        (b"not packed", "rows.jsonl.gz", "no complete gzip"),
        (b'[{"prompt": "a", "completion": "b"}, {"pro', "rows.json", "Row 2 is not valid JSON"),
        (b'[{"prompt": "a", "completion": "b"} {}]', "rows.json", "comma or the closing bracket"),
        (b'{"name": "a"}', "rows.json", "is one object"),
        (b"a,a\n1,2\n", "rows.csv", "Two columns of rows.csv are named `a`"),
        (",".join(f"c{i}" for i in range(1200)).encode() + b"\n", "rows.csv", "1200 columns"),
        (b"[" * 100_000, "rows.json", "nested deeper"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_words(
    load: Importer, content: bytes, name: str, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(content, name)
    assert said in caught.value.message


# Shapes

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


def test_columns_that_fit_no_shape_are_asked_about(load: Importer) -> None:
    with pytest.raises(ColumnsUnclear, match="`sentence`, `label`") as caught:
        load("sentence,label\ngood,positive\nbad,negative\nfine,positive\n", "reviews.csv")
    assert caught.value.code == "columns_unclear"
    assert load.report()["columns"] == ["sentence", "label"]
    assert load.report()["first_rows"][0] == {"sentence": "good", "label": "positive"}


def test_capitals_in_known_names_need_no_question(load: Importer) -> None:
    rows = [{"Prompt ": f"ask {n}", "COMPLETION": f"say {n}", "Id": str(n)} for n in range(9)]
    values = load(table_csv(rows), "rows.csv")
    assert values["shape"] == "prompt_completion"
    assert values["problem_count"] == 0
    assert [message["content"] for message in load.messages()] == ["ask 0", "say 0"]


def test_a_bad_row_is_named_by_the_column_as_it_is_spelt(load: Importer) -> None:
    rows = [
        {"Instruction": f"ask {n}", "Input": "", "Output": "" if n == 3 else f"say {n}"} for n in range(9)
    ]
    with pytest.raises(DataError):
        load(lines(*rows), "rows.jsonl")
    problem = load.report()["problems"][0]
    assert (problem["row"], problem["column"]) == (4, "Output")
    assert problem["message"] == "`Output` is empty. Fill it or remove the row."


def test_two_columns_that_differ_in_capitals_alone_are_asked_about(load: Importer) -> None:
    rows = [{"Prompt": "a", "PROMPT": "b", "completion": f"say {n}"} for n in range(9)]
    with pytest.raises(DataError, match="match no known format"):
        load(lines(*rows), "rows.jsonl")


def test_the_exact_name_is_taken_before_one_with_capitals(load: Importer) -> None:
    rows = [{"prompt": f"ask {n}", "Prompt": "other", "completion": f"say {n}"} for n in range(9)]
    load(lines(*rows), "rows.jsonl")
    assert load.messages()[0]["content"] == "ask 0"


def test_text_beside_a_label_is_asked_about(load: Importer) -> None:
    with pytest.raises(ColumnsUnclear, match="`label`"):
        load(lines({"text": "good", "label": "positive"}))


def test_the_shape_of_most_rows_judges_the_others(load: Importer) -> None:
    values = load(lines({"messages": chat("Hi", "Hello")}, *ROWS, {"prompt": "a"}), skip_bad_rows=True)
    assert values["shape"] == "prompt_completion"
    assert [problem["row"] for problem in values["problems"]] == [1, 42]


def test_chosen_columns_are_used(load: Importer) -> None:
    content = "sentence;label\ngood;1\nbad;0\nfine;1\n"
    values = load(content, "reviews.csv", prompt_column="sentence", completion_column="label")
    assert values["shape"] == "columns"
    assert load.messages() == chat("good", "1")


def test_numbers_in_a_chosen_column_are_written_out(load: Importer) -> None:
    rows = [{"sentence": f"s{number}", "label": number} for number in range(3)]
    load(parquet(rows), "rows.parquet", prompt_column="sentence", completion_column="label")
    assert load.messages() == chat("s0", "0")


def test_an_answer_column_alone_is_plain_text(load: Importer) -> None:
    load("story,label\none,1\ntwo,2\nthree,3\n", "rows.csv", completion_column="story")
    assert load.rows()[0]["text"] == "one"


@pytest.mark.parametrize(
    ("prompt", "completion", "said"),
    [
        ("nothing", "label", "no column `nothing`"),
        ("sentence", "", "holds the answer"),
        ("label", "label", "different"),
    ],
)
def test_wrong_columns_are_refused(load: Importer, prompt: str, completion: str, said: str) -> None:
    with pytest.raises(ColumnsUnclear, match=said):
        load("sentence,label\na,b\n", "rows.csv", prompt_column=prompt, completion_column=completion)


def test_preferences_are_refused(load: Importer) -> None:
    with pytest.raises(DataError, match="Preference training is not offered yet"):
        load(lines({"prompt": "a", "chosen": "b", "rejected": "c"}))


# Bad rows


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
        ('{"prompt": NaN, "completion": "b"}', "", "NaN is no JSON value"),
        ('{"prompt": "a", "prompt": "c", "completion": "b"}', "", "stands twice"),
        ('{"prompt": ' + "9" * 5000 + ', "completion": "b"}', "", "Exceeds the limit"),
        ('{"prompt": "a", "completion": "b", "\\ud800": 1}', "", "surrogate"),
        ("[1, 2]", "", "no JSON object"),
        ("[" * 10_000 + "]" * 10_000, "", "nested deeper than 50"),
        (
            {"prompt": "a", "completion": "b", "more": json.loads("[" * 60 + "]" * 60)},
            "",
            "nested deeper than 50",
        ),
        ('{"prompt": "' + "x" * 5_000_000 + '", "completion": "b"}', "", "Line 3 is longer than 1 MB"),
    ],
)
def test_a_bad_row_is_named_with_column_and_reason(load: Importer, row: Any, column: str, said: str) -> None:
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
def test_a_bad_conversation_is_named(load: Importer, messages: Any, said: str) -> None:
    good = [{"messages": chat(f"Hi {number}", "Hello")} for number in range(5)]
    problem = bad(load, {"messages": messages}, good)
    assert problem["column"] == "messages"
    assert said in problem["message"]


def test_a_row_of_wrong_bytes_is_named(load: Importer) -> None:
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
def test_a_bad_csv_row_is_named_and_the_next_one_read(load: Importer, row: bytes, said: str) -> None:
    good = table_csv(ROWS).encode().splitlines(keepends=True)
    values = load(b"".join(good[:3]) + row + b"\r\n" + b"".join(good[3:]), "rows.csv", skip_bad_rows=True)
    assert values["rows"] == 40
    assert values["problems"][0]["row"] == 3
    assert said in values["problems"][0]["message"]


def test_a_quoted_csv_value_may_hold_lines_and_separators(load: Importer) -> None:
    load(table_csv([{"prompt": 'a, "b"\nc', "completion": str(number)} for number in range(3)]), "rows.csv")
    assert load.messages() == chat('a, "b"\nc', "0")


def test_bad_rows_fail_the_import_and_the_report_stays(load: Importer) -> None:
    rows = [*ROWS[:6], {"prompt": "a"}, *ROWS[6:], {"prompt": "b"}]
    with pytest.raises(DataError) as caught:
        load(lines(*rows))
    assert caught.value.message.startswith(
        "2 of 42 rows are invalid. The first is row 7: This row has no `completion`."
    )
    assert [problem["row"] for problem in load.report()["problems"]] == [7, 42]
    assert not list(load.out.glob("*.parquet"))


def test_good_rows_are_offered_alone_where_they_would_do(load: Importer) -> None:
    for good, advice in ((3, "skip invalid rows on import."), (2, "Correct them and upload the file again.")):
        with pytest.raises(DataError) as caught:
            load(lines(*ROWS[:good], {"prompt": "a"}))
        assert caught.value.message.endswith(advice)


def test_the_first_hundred_problems_are_kept_and_all_counted(load: Importer) -> None:
    values = load(lines(*ROWS, *({"prompt": "a"} for _ in range(150))), skip_bad_rows=True)
    assert len(values["problems"]) == 100
    assert values["problem_count"] == 150
    assert values["total_rows"] == 190


def test_only_bad_rows_fail_even_when_they_may_be_skipped(load: Importer) -> None:
    with pytest.raises(DataError, match="3 of 3 rows are invalid"):
        load(lines(*({"prompt": "", "completion": str(number)} for number in range(3))), skip_bad_rows=True)


def test_a_text_that_is_too_long_is_named_by_its_column(load: Importer) -> None:
    values = load(lines(*ROWS, {"prompt": "x" * 300_000, "completion": "a"}), skip_bad_rows=True)
    assert [one["column"] for one in values["problems"]] == ["prompt"]


def test_too_few_different_rows_are_refused(load: Importer) -> None:
    with pytest.raises(DataError, match="has 2 different good rows"):
        load(lines(*[*ROWS[:2]] * 5))


# Parquet


def test_a_parquet_file_that_unpacks_to_far_more_is_refused(load: Importer) -> None:
    rows = [{"prompt": "x" * 200_000, "completion": "y" * 200_000 + str(number)} for number in range(200)]
    with pytest.raises(DataError, match="over 20 times its size"):
        load(parquet(rows, compression="zstd", use_dictionary=False), "bomb.parquet")


def test_a_parquet_file_of_one_value_repeated_is_stopped_while_it_unpacks(load: Importer) -> None:
    rows = [{"prompt": "x" * 200_000, "completion": str(number)} for number in range(400)]
    content = parquet(rows)
    assert pyarrow.parquet.read_metadata(io.BytesIO(content)).row_group(0).total_byte_size < 1_000_000
    with pytest.raises(DataError, match="over 20 times its size"):
        load(content, "bomb.parquet")


def test_parquet_lists_become_messages(load: Importer) -> None:
    load(parquet([{"messages": chat(f"Hi {number}", "Hello")} for number in range(3)]), "rows.parquet")
    assert load.messages() == chat("Hi 0", "Hello")


def test_a_parquet_value_of_another_type_is_named(load: Importer) -> None:
    rows = [{"prompt": "a", "completion": value} for value in (b"x", b"y", b"z")]
    with pytest.raises(DataError, match="of the type bytes here"):
        load(parquet(rows), "rows.parquet")


def test_a_gzip_bomb_stops_at_the_cap(load: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.importing.reading.MAX_UNPACKED_BYTES", 2_000_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        load(gzip.compress(b"\n" * 9_000_000), "rows.jsonl.gz")


def test_a_parquet_column_of_broken_bytes_is_refused(load: Importer) -> None:
    with pytest.raises(DataError, match="Export it again"):
        load(parquet(ROWS).replace(b"completion", b"complet\xffon"), "rows.parquet")


def test_a_row_of_a_json_array_that_breaks_a_rule_is_named(load: Importer) -> None:
    content = json.dumps([*ROWS, {"prompt": "a\0", "completion": "b"}, ["no", "object"]])
    values = load(content, "rows.json", skip_bad_rows=True)
    assert [problem["row"] for problem in values["problems"]] == [41, 42]


# Splits and hash


def test_the_same_seed_gives_the_same_dataset_and_another_seed_another(load: Importer) -> None:
    first, again, other = (load(lines(*ROWS), seed=seed)["sha256"] for seed in (1, 1, 2))
    assert first == again != other


def test_copies_of_a_row_share_a_split_and_are_counted(load: Importer) -> None:
    values = load(lines(*ROWS, *ROWS, *ROWS[:5]))
    assert values["duplicates"] == 45
    assert sum(values["splits"].values()) == values["rows"] == 85
    homes: dict[str, set[str]] = {}
    for name in ("train", "validation", "test"):
        for row in pyarrow.parquet.read_table(load.out / f"{name}.parquet").to_pylist():
            homes.setdefault(row["messages"], set()).add(name)
    assert all(len(names) == 1 for names in homes.values())


def split_of(load: Importer) -> dict[int, str]:
    """Row number -> the split that it is in."""
    return {
        row: name
        for name in ("train", "validation", "test")
        for row in pyarrow.parquet.read_table(load.out / f"{name}.parquet").column("row").to_pylist()
    }


def asked_twice(count: int) -> list[dict[str, str]]:
    """Long questions, each followed by itself with one more word and another answer."""
    rows = []
    for number in range(count):
        asked = " ".join(f"w{number}x{place}" for place in range(20))
        rows += [{"prompt": asked, "completion": "a"}, {"prompt": f"{asked} thanks", "completion": "b"}]
    return rows


def test_rows_that_ask_nearly_the_same_share_a_split_and_the_report_says_so(load: Importer) -> None:
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


def test_a_row_that_stands_alone_keeps_its_split_when_copies_of_others_come(load: Importer) -> None:
    load(lines(*ROWS))
    before = split_of(load)
    load(lines(*ROWS, ROWS[0], {**ROWS[0], "prompt": "COLOUR  of 0"}))
    after = split_of(load)
    assert after[41] == after[42] == after[1]
    assert sum(before[row] != after[row] for row in range(1, 41)) <= 3, (
        "the shares of 42 rows differ a little"
    )


def test_rows_of_one_document_share_a_split(load: Importer) -> None:
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


def test_the_report_counts_the_rows_that_are_left_out(load: Importer) -> None:
    """Each question is asked by two customers, so what is held out of one was learned from another."""
    rows = [
        {"prompt": f"How is thing {n // 2} made?", "completion": f"so {n}", "customer": f"c{n % 20}"}
        for n in range(1, 201)
    ]
    values = load(lines(*rows), group_column="customer")
    left = values["left_out"]
    assert left["train"] > 10
    assert sum(values["splits"].values()) + sum(left.values()) == 200
    assert any(note.startswith(f"{left['train']} rows were left out") for note in values["split_notes"])
    where = split_of(load)
    asked = {row: (row // 2) for row in range(1, 201)}
    held = {asked[row] for row, name in where.items() if name == "test"}
    assert not any(asked[row] in held for row, name in where.items() if name != "test")


def test_nothing_left_to_train_on_is_refused_in_words(load: Importer) -> None:
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
def test_a_group_column_that_cannot_be_one_is_asked_about(load: Importer, column: str, said: str) -> None:
    with pytest.raises(ColumnsUnclear, match=said):
        load(lines(*ROWS), group_column=column)
    assert load.report()["shape"] == "prompt_completion"
    assert load.report()["columns"] == ["prompt", "completion"]


def test_too_few_groups_are_refused_in_words(load: Importer) -> None:
    rows = [{**row, "half": place % 2} for place, row in enumerate(ROWS)]
    with pytest.raises(DataError, match="`half` has 2 different values"):
        load(lines(*rows), group_column="half")


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "no `who`"), ("  ", "no `who`"), (["a"], "`who` is a list here. It must be text or a number.")],
)
def test_a_row_without_its_group_is_named(load: Importer, value: Any, said: str) -> None:
    rows: list[dict[str, Any]] = [{**row, "who": f"c{place}"} for place, row in enumerate(ROWS)]
    rows[4]["who"] = value
    with pytest.raises(DataError, match="1 of 40 rows are invalid"):
        load(lines(*rows), group_column="who")
    assert load.report()["problems"][0]["column"] == "who"
    assert said in load.report()["problems"][0]["message"]


def test_columns_whose_values_repeat_are_suggested(load: Importer) -> None:
    rows = [
        {**row, "customer": f"c{place // 4}", "id": place, "kind": "mail", "flag": place % 3 == 0}
        for place, row in enumerate(ROWS)
    ]
    assert load(lines(*rows))["group_columns"] == [{"name": "customer", "values": 10}]


def test_the_columns_of_an_unclear_file_are_suggested_too(load: Importer) -> None:
    content = "sentence,label,author\n" + "".join(f"s{n},{n % 2},a{n // 4}\n" for n in range(60))
    with pytest.raises(ColumnsUnclear):
        load(content, "reviews.csv")
    assert load.report()["group_columns"] == [{"name": "author", "values": 15}]


def test_the_test_rows_have_a_checksum_of_their_own(load: Importer) -> None:
    first = load(lines(*ROWS))
    stored = pyarrow.parquet.read_table(load.out / "test.parquet")
    assert first["test_sha256"] == rows_sha256(stored)
    other = load(lines(*ROWS[:-1], {**ROWS[-1], "completion": "another shade"}))
    moved = load(lines(*ROWS), seed=7)
    assert len({first["test_sha256"], moved["test_sha256"]}) == 2
    assert first["sha256"] != other["sha256"]


def test_plain_text_has_a_checksum_too(load: Importer) -> None:
    values = load(lines(*({"text": f"Seite {number} “ü”", "id": number} for number in range(5))))
    assert values["test_sha256"] == rows_sha256(pyarrow.parquet.read_table(load.out / "test.parquet"))


# Preview


def test_the_preview_shows_what_the_model_reads_and_learns(load: Importer) -> None:
    values = load(lines(*ROWS))
    preview = json.loads((load.out / "preview.json").read_text())
    assert len(preview) == 20
    assert preview[0]["row"] == 1
    assert preview[0]["text"].startswith("<|im_start|>user\nColour of 0?<|im_end|>")
    learned = [segment["text"] for segment in preview[0]["segments"] if segment["learned"]]
    assert learned == ["shade 0<|im_end|>"]
    assert values["token_lengths"]["max"] >= preview[0]["tokens"]
    assert sum(values["token_lengths"]["histogram"]["rows"]) == 40


def test_the_report_says_how_long_rows_are_and_where_their_answers_end(load: Importer) -> None:
    lengths = load(lines(*ROWS))["token_lengths"]
    preview = json.loads((load.out / "preview.json").read_text())
    assert len(lengths["quantiles"]) == len(lengths["answer_ends"]) == 101
    assert lengths["quantiles"][-1] == lengths["max"]
    # The template writes a line break after the end mark, which nobody learns.
    assert lengths["answer_ends"][-1] == lengths["max"] - 1
    assert lengths["learned_mean"] == pytest.approx(
        sum(row["learned_tokens"] for row in preview) / 20, rel=0.2
    )


def test_the_report_counts_the_tokens_that_all_rows_begin_with(load: Importer) -> None:
    alike = [{"prompt": f"Name the colour of number {i}", "completion": f"shade {i}"} for i in range(40)]
    together = load(lines(*alike))["token_lengths"]["shared_prefix"]
    alike[7]["prompt"] = "Another question"
    assert 0 < load(lines(*alike))["token_lengths"]["shared_prefix"] < together


def test_a_template_that_never_ends_is_stopped(load: Importer, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "slow")
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    with pytest.raises(ModelError, match="needs more than 2 s"):
        load(lines(*ROWS), tokenizer=str(folder))


def test_a_template_cannot_take_all_memory(load: Importer, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "greedy")
    (folder / "chat_template.jinja").write_text("{{ 'x' * 3000000000 }}")
    with pytest.raises(ModelError, match="512 MB"):
        load(lines(*ROWS), tokenizer=str(folder))


def test_a_template_of_unusual_size_is_refused(load: Importer, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "long")
    (folder / "chat_template.jinja").write_text("{# " + "x" * 70_000 + " #}")
    with pytest.raises(ModelError, match="At most 64 kB"):
        load(lines(*ROWS), tokenizer=str(folder))


def test_a_template_that_reaches_for_python_gets_nothing(load: Importer, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "evil")
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    values = load(lines(*ROWS), tokenizer=str(folder))
    assert values["token_lengths"] == {"rows": 0}
    assert "does not fit the base model's chat template" in values["warnings"][0]


def test_it_stops_when_asked(load: Importer, tmp_path: Path) -> None:
    upload = tmp_path / "rows"
    upload.write_text(lines(*ROWS))
    spec = ImportSpec(upload=str(upload), filename="rows.jsonl", tokenizer="")
    with pytest.raises(Stopped, match="cancel"):
        run_import.run_import(spec, tmp_path / "out", report=lambda event: None, should_stop=lambda: "cancel")


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"prompt": f"Mail {n}", "completion": "spam" if n % 2 else "ham"} for n in range(20)], "label"),
        ([{"prompt": f"Mail {n}", "completion": json.dumps({"team": n})} for n in range(20)], "json"),
        ([{"prompt": f"Mail {n}", "completion": f"A story about {n}."} for n in range(20)], "text"),
        ([{"text": f"Some prose, number {n}."} for n in range(20)], "none"),
    ],
)
def test_it_tells_which_kind_of_answer_the_rows_have(
    load: Importer, rows: list[dict[str, str]], kind: str
) -> None:
    assert load(lines(*rows), "mails.jsonl")["answers"] == kind
