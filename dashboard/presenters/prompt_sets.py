"""A prompt set's page: prompts in rows, the chosen models in columns, their answers in the cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dashboard.forms.adapters import BASE
from dashboard.models import PromptAnswer, PromptSet, SavedPrompt, User
from dashboard.presenters.playground import Column, Playground, choose_models


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and the answer of each column to it, if there is one."""

    prompt: SavedPrompt
    cells: Sequence[tuple[Column, PromptAnswer | None]]


@dataclass(frozen=True)
class AnswerTable:
    """All prompts of a set with the answers of the chosen models."""

    prompt_set: PromptSet
    playground: Playground
    rows: Sequence[PromptRow]

    @property
    def missing(self) -> int:
        """Return how many answers are not there."""
        return sum(answer is None for row in self.rows for _column, answer in row.cells)


def answer_table(prompt_set: PromptSet, user: User, wanted_base: str, wanted: Iterable[str]) -> AnswerTable:
    """Return the page for the query of its address; models that do not exist are left out."""
    shown, adapters = choose_models(prompt_set.project, user, wanted_base, wanted)
    prompts = list(prompt_set.prompts.all())
    if shown.base is None:
        return AnswerTable(prompt_set, shown, [PromptRow(prompt, []) for prompt in prompts])
    keys = {column.value: None if column.value == BASE else int(column.value) for column in shown.columns}
    stored = PromptAnswer.objects.of_models(prompt_set, shown.base, [None, *adapters])
    rows = [
        PromptRow(
            prompt,
            [(column, stored.get((prompt.pk, keys[column.value]))) for column in shown.columns],
        )
        for prompt in prompts
    ]
    return AnswerTable(prompt_set, shown, rows)
