"""Easy questions, always the same, each with three wrong answers: what an adapter still knows elsewhere.

Nothing is generated: an answer is as likely as the model finds its tokens after the question, asked through
the base model's own chat template. A question counts as right if no wrong answer is as likely.
Knows nothing of models; means and intervals are made from its marks elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from workers.contract.errors import DataError
from workers.engine.training.data import CanonicalRow, Example, encode

QUESTIONS = Path(__file__).with_name("general_questions.json")
# Marks of another version are marks of other questions: a change of the file needs a new version here.
VERSION = 1
SHA256 = "b768084b957f42d88a486b94038d0a69baffcca71663dac1f8d97769213e599a"
CHOICES = 4


def read_questions(path: Path = QUESTIONS) -> list[list[str]]:
    """(question, right answer, three wrong ones) each; a file that was changed is refused."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(
            f"The general questions in workers/engine/{path.name} were changed, so their marks could not be "
            "compared with others. Put the file of this version back."
        )
    return [[one["question"], one["right"], *one["wrong"]] for one in json.loads(content)["questions"]]


def encode_choices(tokenizer: Any) -> list[Example]:
    """Every question with each of its answers, the right one first; only tokens of the answer are scored."""
    rows: list[CanonicalRow] = []
    for question, *answers in read_questions():
        for answer in answers:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            rows.append(CanonicalRow(len(rows), messages, None))
    return [_without_end(example, tokenizer.all_special_ids) for example in encode(tokenizer, rows)]


def _without_end(example: Example, special_ids: list[int]) -> Example:
    """The mark that ends a turn says something of the style of answers, and nothing of what is known."""
    learn = example.loss_mask.copy()
    for place in reversed(learn.nonzero()[0]):
        if example.ids[place] not in special_ids:
            break
        learn[place] = False
    kept = dataclasses.replace(example, loss_mask=learn)
    return kept.truncate(int(learn.nonzero()[0][-1]) + 1) if learn.any() else example


def mark_questions(losses: dict[int, tuple[float, int]]) -> list[int]:
    """1 for each question whose right answer is likelier than all others, else 0; from losses by row."""
    summed = [losses[row][0] for row in sorted(losses)]
    found = []
    for start in range(0, len(summed), CHOICES):
        right, *wrong = summed[start : start + CHOICES]
        found.append(int(all(right < other for other in wrong)))
    return found
