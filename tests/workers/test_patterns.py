"""Regular expressions as a metric: what they find, what is refused, and that none of them takes long."""

from __future__ import annotations

import time

import pytest

from workers.errors import SpecError
from workers.patterns import check_pattern, pattern_score


@pytest.mark.parametrize(
    ("pattern", "output", "expected", "score"),
    [
        (r"\d+", "there are 42", "anything", 1.0),
        (r"\d+", "there are some", "anything", 0.0),
        (r"total: (\d+)", "The total: 42.", "total: 42", 1.0),
        (r"total: (\d+)", "The total: 42.", "total: 43", 0.0),
        (r"total: (\d+)", "The total: 42.", " 42\n", 1.0),  # the expected answer is what the group holds
        (r"total: (\d+)", "no number", "no number", 0.0),
        (r"(?i)TOTAL", "the total", "", 1.0),
        (r"(yes)?no", "no", "no", 1.0),  # a group that takes no part holds nothing
        (r"Grüße(.)", "Viele Grüße!", "Grüße!", 1.0),
    ],
)
def test_it_scores_one_answer(pattern: str, output: str, expected: str, score: float) -> None:
    check_pattern(pattern)
    assert pattern_score(pattern, output, expected) == score


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("", "Write the `pattern`"),
        ("(", "missing )"),
        ("[a", "missing ]"),
        (r"(a)\1", "repeating a group"),
        (r"(?<=a)b", "Looking ahead or back"),
        ("a{1000}{1000}", "bad repetition"),
        ("x" * 201, "At most 200"),
        ("a\0", "NUL"),
        ("\ud800", "no regular expression"),
        (r"((((\pL{1,900}){1,1}){1,1}){1,1})", "too large"),
    ],
)
def test_it_says_what_it_cannot_look_for(pattern: str, words: str) -> None:
    with pytest.raises(SpecError, match="pattern") as refusal:
        check_pattern(pattern)
    assert refusal.value.field == "pattern"
    assert words in refusal.value.message


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*)(.*)(.*)(.*)x$"])
def test_no_pattern_holds_up_a_worker(pattern: str) -> None:
    """Each of these takes longer than the age of the universe where the engine goes back and tries again."""
    check_pattern(pattern)
    began = time.monotonic()
    assert pattern_score(pattern, "a" * 50_000 + "c", "a") == 0.0
    assert time.monotonic() - began < 5
