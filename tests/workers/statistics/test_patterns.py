"""Regular expressions as a metric: scores, refused patterns, and linear running time."""

from __future__ import annotations

import time

import pytest

from workers.contract.errors import SpecError
from workers.statistics.regex_metric import check_pattern, pattern_score


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
def test_scores_of_patterns(pattern: str, output: str, expected: str, score: float) -> None:
    check_pattern(pattern)
    assert pattern_score(pattern, output, expected) == score


@pytest.mark.parametrize(
    "pattern",
    ["", "(", "[a", r"(a)\1", r"(?<=a)b", "a{1000}{1000}", "x" * 201, "a\0", "\ud800",
     r"((((\pL{1,900}){1,1}){1,1}){1,1})"],
)  # fmt: skip
def test_unusable_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(SpecError) as refusal:
        check_pattern(pattern)
    assert refusal.value.field == "pattern"


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*)(.*)(.*)(.*)x$"])
def test_running_time_is_linear(pattern: str) -> None:
    """A backtracking engine would not finish any of these."""
    check_pattern(pattern)
    began = time.monotonic()
    assert pattern_score(pattern, "a" * 50_000 + "c", "a") == 0.0
    assert time.monotonic() - began < 5
