"""Scores one answer against the expected one, from 0 to 1; the kind of answers decides which scores apply.

Knows nothing of models, rows or means.
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
# Answers are labels if they are short and repeat.
MAX_LABEL_CHARACTERS = 60
MAX_LABELS = 50
MAX_DISTINCT_SHARE = 0.2
MIN_JSON_SHARE = 0.95


def answer_kind(answers: Sequence[str]) -> str:
    """Return `label`, `json` or `text` for the expected answers."""
    structured = sum(isinstance(_parse_json(answer), dict | list) for answer in answers)
    if answers and structured >= MIN_JSON_SHARE * len(answers):
        return JSON
    distinct = {answer.strip() for answer in answers}
    short = all(len(answer) <= MAX_LABEL_CHARACTERS and "\n" not in answer for answer in distinct)
    repeated = 0 < len(distinct) <= min(MAX_LABELS, max(2, MAX_DISTINCT_SHARE * len(answers)))
    return LABEL if short and repeated and len(answers) > len(distinct) else TEXT


def score_answer(
    output: str, expected: str, kind: str = TEXT, *, metric: str = "", pattern: str = ""
) -> Scores:
    """Return the scores that apply to this kind of answer, and `metric` in any case."""
    scores = {
        "exact_match": float(output.strip() == expected.strip()),
        "contains": float(bool(_collapse(expected)) and _collapse(expected) in _collapse(output)),
        "token_f1": token_f1(output, expected),
        "rouge_l": float(_rouge().score(expected, output)["rougeL"].fmeasure),
        "chrf": float(_chrf().sentence_score(output, [expected]).score) / 100,
    }
    if kind == LABEL or metric == "accuracy":
        scores["accuracy"] = float(_label(output) == _label(expected))
    if kind == JSON or metric in ("json_valid", "field_f1"):
        scores |= {
            "json_valid": float(_parse_json(output) is not _INVALID_JSON),
            "field_f1": field_f1(output, expected),
        }
    if pattern:
        scores["regex"] = pattern_score(pattern, output, expected)
    return scores


def token_f1(output: str, expected: str) -> float:
    """Return the F1 of SQuAD (Rajpurkar et al. 2016): a bag of lower-case words without articles."""
    return _f1(_words(output), _words(expected))


def field_f1(output: str, expected: str) -> float:
    """Return the F1 over the (path, value) pairs of two JSON documents; 0 if the output is not JSON."""
    documents = _parse_json(output), _parse_json(expected)
    if _INVALID_JSON in documents:
        return 0.0
    predicted, reference = (list(_leaves(document)) for document in documents)
    return _f1(predicted, reference)


def _f1(predicted: Sequence[Any], reference: Sequence[Any]) -> float:
    if not predicted or not reference:
        return float(list(predicted) == list(reference))
    common = sum((collections.Counter(predicted) & collections.Counter(reference)).values())
    return 2 * common / (len(predicted) + len(reference))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, value) of every leaf. Paths have no list index, so the order of a list does not count."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}")
    elif isinstance(value, list) and value:
        for item in value:
            yield from _leaves(item, f"{path}[]")
    else:
        yield path, json.dumps(value)


_INVALID_JSON = object()


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _INVALID_JSON


def _label(text: str) -> str:
    """Return the first line in lower case without outer punctuation."""
    lines = text.strip().splitlines()
    return lines[0].casefold().strip(string.punctuation + string.whitespace) if lines else ""


def _collapse(text: str) -> str:
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
