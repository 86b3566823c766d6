"""Encodes and marks fixed general-knowledge questions, which show what an adapter makes a model forget.

Nothing is generated: each question is multiple choice with three wrong answers. It is answered correctly if
the right answer has the highest likelihood after the question in the base model's chat template.
Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from workers.contract.errors import DataError
from workers.engine.training.encoding import CanonicalRow, Example, encode

QUESTIONS = Path(__file__).with_name("general_questions.json")
# Marks of different versions cannot be compared, so a change of the file needs a new version.
VERSION = 1
SHA256 = "b768084b957f42d88a486b94038d0a69baffcca71663dac1f8d97769213e599a"
CHOICES = 4


def read_questions(path: Path = QUESTIONS) -> list[list[str]]:
    """Return [question, right answer, three wrong answers] of each question.

    Raises DataError if the file is not the one of this version.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(
            f"The general questions in workers/engine/{path.name} have changed, so results "
            "could not be compared. Restore the file of this version."
        )
    return [[item["question"], item["right"], *item["wrong"]] for item in json.loads(content)["questions"]]


def encode_choices(tokenizer: Any) -> list[Example]:
    """Return every question with each of its answers, the right one first. Only answer tokens are targets."""
    rows: list[CanonicalRow] = []
    for question, *answers in read_questions():
        for answer in answers:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            rows.append(CanonicalRow(len(rows), messages, None))
    return [_without_end_token(example, tokenizer.all_special_ids) for example in encode(tokenizer, rows)]


def _without_end_token(example: Example, special_ids: list[int]) -> Example:
    """Remove the end-of-turn token: its likelihood says nothing about knowledge."""
    learn = example.loss_mask.copy()
    for place in reversed(learn.nonzero()[0]):
        if example.ids[place] not in special_ids:
            break
        learn[place] = False
    kept = dataclasses.replace(example, loss_mask=learn)
    return kept.truncate(int(learn.nonzero()[0][-1]) + 1) if learn.any() else example


def mark_questions(losses: dict[int, tuple[float, int]]) -> list[int]:
    """Return 1 for each question whose right answer has the lowest summed loss, else 0."""
    summed = [losses[row][0] for row in sorted(losses)]
    questions = [summed[start : start + CHOICES] for start in range(0, len(summed), CHOICES)]
    return [int(all(right < other for other in wrong)) for right, *wrong in questions]
