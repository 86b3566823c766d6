"""Draws splits, keeps groups together and leaves out rows that would leak."""

from __future__ import annotations

import hashlib

import numpy
import pytest

from workers.contract.errors import DataError, Stopped
from workers.engine.importing.splits import (
    LEFT_OUT,
    TEST,
    TRAIN,
    VALIDATION,
    RowFingerprints,
    SplitAssignment,
    assign_splits,
    draw_splits,
    split_prompt_and_answer,
)


def nothing() -> None:
    return None


def division(
    rows: list[tuple[str, str]], groups: list[str] | None = None, *, seed: int = 42, share: float = 0.1
) -> SplitAssignment:
    """Rows of (prompt, answer), divided."""
    keys = RowFingerprints()
    for number, (prompt, answer) in enumerate(rows, 1):
        value = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        content = hashlib.sha256(f"{prompt}\t{answer}".encode()).digest()[:8]
        keys.add(number, content, value, groups[number - 1] if groups else None)
    return assign_splits(
        keys,
        seed=seed,
        validation_share=share,
        test_share=share,
        group_column="group" if groups else "",
        check_stop=nothing,
    )


@pytest.mark.parametrize(("rows", "shares"), [(3, (0.1, 0.1)), (4, (0.9, 0.9)), (1000, (0.1, 0.1))])
def test_no_split_is_empty(rows: int, shares: tuple[float, float]) -> None:
    places = draw_splits(numpy.arange(rows, dtype=numpy.uint64), *shares)
    assert numpy.bincount(places, minlength=3).min() >= 1


def test_one_prompt_that_fills_the_file_leaves_no_split_empty() -> None:
    keys = numpy.array([7] * 97 + [1, 9, 3], dtype=numpy.uint64)
    places = draw_splits(keys, 0.1, 0.1)
    assert numpy.bincount(places, minlength=3).min() >= 1
    assert len(set(places[:97].tolist())) == 1


def test_rows_with_one_prompt_share_a_split() -> None:
    rows = [(f"Question number {n // 2}?", f"answer {n}") for n in range(200)]
    found = division(rows)
    assert (found.splits[::2] == found.splits[1::2]).all()
    assert found.groups.tolist()[:4] == [1, 1, 3, 3]
    assert found.report["left_out"] == {"train": 0, "validation": 0}


def test_case_white_space_and_final_punctuation_are_ignored() -> None:
    rows = [(f"Question {n}", "yes") for n in range(50)] + [(f" QUESTION\n{n}?", "YES") for n in range(50)]
    found = division(rows)
    assert (found.splits[:50] == found.splits[50:]).all()
    assert found.report["duplicates"] == 50


def test_prompt_of_all_rows_groups_only_equal_answers() -> None:
    """Nothing is asked but the same: only copies of the answer belong together."""
    rows = [("Write a line in our voice.", f"line {n // 2}") for n in range(200)]
    found = division(rows)
    assert (found.splits[::2] == found.splits[1::2]).all()
    assert len(set(found.groups.tolist())) == 100
    assert numpy.bincount(found.splits).tolist() == [160, 20, 20]


def test_group_column_overrides_shared_prompts() -> None:
    """A greeting of every customer must not tie all customers together."""
    rows = [(f"Question {n} of mine", "x") for n in range(180)] + [
        (f"Hello there {n % 2}", "x") for n in range(20)
    ]
    groups = [f"c{n % 20}" for n in range(200)]
    found = division(rows, groups)
    assert len(set(found.groups.tolist())) == 20
    assert found.report["groups"] == {"train": 16, "validation": 2, "test": 2}
    for customer in range(20):
        kept = {int(place) for place in found.splits[customer::20]} - {LEFT_OUT}
        assert len(kept) == 1
    held = set()
    for kind in range(2):
        greetings = set(found.splits[180 + kind :: 2].tolist())
        held |= greetings & {TEST, VALIDATION}
        if TEST in greetings:
            assert not greetings & {TRAIN, VALIDATION}
        elif VALIDATION in greetings:
            assert TRAIN not in greetings
    assert held, "somebody who greets is held out"


def test_no_training_row_is_similar_to_a_held_out_row() -> None:
    rows = [(f"How is thing {n // 3} made?", f"so {n}") for n in range(300)]
    groups = [f"c{n % 30}" for n in range(300)]
    found = division(rows, groups)
    asked = numpy.arange(300) // 3
    test, validation = (set(asked[found.splits == code].tolist()) for code in (TEST, VALIDATION))
    train = set(asked[found.splits == TRAIN].tolist())
    assert not train & (test | validation)
    assert not validation & test
    assert any("left out of the training split" in note for note in found.report["split_notes"])
    assert (
        found.report["left_out"]["train"]
        == int((found.splits == LEFT_OUT).sum()) - (found.report["left_out"]["validation"])
    )


def test_groups_larger_than_a_held_out_share_are_still_divided() -> None:
    rows = [(f"Question {n}?", "x") for n in range(90)]
    found = division(rows, [f"g{n % 3}" for n in range(90)])
    assert numpy.bincount(found.splits).tolist() == [30, 30, 30]


def test_two_different_prompts_are_refused() -> None:
    asked = [" ".join(f"w{kind}x{place}" for place in range(40)) for kind in range(2)]
    rows = [(f"{asked[n % 2]} number {n // 2}", "x") for n in range(4)]
    with pytest.raises(DataError, match="only 2 different prompts"):
        division(rows)


def test_split_stops_on_cancel() -> None:
    def stop() -> None:
        raise Stopped("cancel")

    keys = RowFingerprints()
    keys.add(1, b"12345678", "a text", None)
    with pytest.raises(Stopped):
        assign_splits(keys, seed=1, validation_share=0.1, test_share=0.1, check_stop=stop)


def test_prompt_of_a_chat_is_all_before_the_last_answer() -> None:
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Tea"},
    ]
    assert split_prompt_and_answer(chat) == ("Be kind.\nHi\nHello\nAnd now?", "Tea")
    assert split_prompt_and_answer("a text") == ("a text", "")
