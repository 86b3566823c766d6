"""Scores of one answer against the expected one, each from 0 to 1; which of them fit depends on the answers.

Plain Python over strings: knows nothing of models, rows or means.
"""

from __future__ import annotations

import collections
import functools
import json
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

from workers.statistics.regex_metric import pattern_score

Scores = dict[str, float]

LABEL, JSON, TEXT = "label", "json", "text"
# Answers are labels when they are short and come again and again.
LABEL_LETTERS = 60
MOST_LABELS = 50
LABEL_SHARE = 0.2
JSON_SHARE = 0.95


def answer_kind(answers: Sequence[str]) -> str:
    """`label`, `json` or `text`, from the expected answers alone."""
    structured = sum(isinstance(_parsed(answer), dict | list) for answer in answers)
    if answers and structured >= JSON_SHARE * len(answers):
        return JSON
    distinct = {answer.strip() for answer in answers}
    short = all(len(answer) <= LABEL_LETTERS and "\n" not in answer for answer in distinct)
    repeated = 0 < len(distinct) <= min(MOST_LABELS, max(2, LABEL_SHARE * len(answers)))
    return LABEL if short and repeated and len(answers) > len(distinct) else TEXT


def score_answer(
    output: str, expected: str, kind: str = TEXT, *, metric: str = "", pattern: str = ""
) -> Scores:
    """Every score of one answer that fits its kind, and `metric` also where it does not."""
    scores = {
        "exact_match": float(output.strip() == expected.strip()),
        "contains": float(bool(_flat(expected)) and _flat(expected) in _flat(output)),
        "token_f1": token_f1(output, expected),
        "rouge_l": float(_rouge().score(expected, output)["rougeL"].fmeasure),
        "chrf": float(_chrf().sentence_score(output, [expected]).score) / 100,
    }
    if kind == LABEL or metric == "accuracy":
        scores["accuracy"] = float(_label(output) == _label(expected))
    if kind == JSON or metric in ("json_valid", "field_f1"):
        scores |= {
            "json_valid": float(_parsed(output) is not _INVALID_JSON),
            "field_f1": field_f1(output, expected),
        }
    if pattern:
        scores["regex"] = pattern_score(pattern, output, expected)
    return scores


def token_f1(output: str, expected: str) -> float:
    """SQuAD's F1: words in lower case, without punctuation and articles, as a bag."""
    return _f1(_words(output), _words(expected))


def field_f1(output: str, expected: str) -> float:
    """F1 over (path, value) pairs of two JSON documents; 0 when the output is no JSON."""
    found, wanted = _parsed(output), _parsed(expected)
    if found is _INVALID_JSON or wanted is _INVALID_JSON:
        return 0.0
    return _f1(list(_fields(found)), list(_fields(wanted)))


def _f1(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    if not found or not wanted:
        return float(list(found) == list(wanted))
    common = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves with their path; a list's order does not count, as its places are left out."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _fields(item, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for item in value:
            yield from _fields(item, f"{path}[]")
    else:
        yield path, json.dumps(value)


_INVALID_JSON = object()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _INVALID_JSON


def _label(text: str) -> str:
    """The first line, without case and outer punctuation."""
    lines = text.strip().splitlines()
    return lines[0].casefold().strip(string.punctuation + string.whitespace) if lines else ""


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> list[str]:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
