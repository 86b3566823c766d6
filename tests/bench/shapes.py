"""Rows of the benchmark's datasets, drawn from a seed, and the layers of the bundled model to adapt."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = list[dict[str, Any]] | str
POOL = 1600  # with fewer rows, grouping by length pads the peer unfairly
HELD_OUT = 32  # rows behind them
WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"),
    *("state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week"),
    *("company", "system", "program", "question", "work", "number", "night", "point", "home", "water"),
    *("room", "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye"),
    *("job", "word", "business", "issue", "side", "kind", "head", "house", "service", "friend"),
)


@dataclass(frozen=True)
class Shape:
    """One dataset: `row` draws a row, `steps` of the benchmark's batch read about 25,000 tokens."""

    name: str
    row: Callable[[random.Random], Row]
    steps: int
    shares_prompt: bool = False

    def rows(self, count: int) -> list[Row]:
        """Return as many rows, the same ones each time."""
        generator = random.Random(self.name)
        return [self.row(generator) for _ in range(count)]


def _words(generator: random.Random, count: int) -> str:
    return " ".join(generator.choices(WORDS, k=count))


def _chat(system: str, prompt: str, answer: str) -> Row:
    roles = ("system", "user", "assistant")
    return [
        {"role": role, "content": text} for role, text in zip(roles, (system, prompt, answer), strict=True)
    ]


def _varied(generator: random.Random) -> Row:
    length = min(400, int(generator.lognormvariate(3.4, 0.8)) + 4)
    return _chat(
        _words(generator, 2), _words(generator, length), _words(generator, generator.randint(2, length))
    )


def _uniform(generator: random.Random) -> Row:
    return _words(generator, 300)  # cut to `MAX_LENGTH` tokens, all of them learned


def _long_prompt(generator: random.Random) -> Row:
    return _chat(
        _words(generator, 2),
        _words(generator, generator.randint(60, 160)),
        _words(generator, generator.randint(4, 16)),
    )


SHARED_PROMPT = _words(random.Random(1), 40)


def _shared_prompt(generator: random.Random) -> Row:
    return _chat(
        SHARED_PROMPT, _words(generator, generator.randint(4, 30)), _words(generator, generator.randint(1, 6))
    )


VARIED = Shape("varied", _varied, 40)
SHAPES = (
    VARIED,
    Shape("uniform and fully labelled", _uniform, 12),
    Shape("long prompts with short answers", _long_prompt, 24),
    Shape("shared prompt", _shared_prompt, 40, shares_prompt=True),
)


RANK = 8
LAYERS = 30
# Input and output width of the linear layers.
WIDTHS = {
    "q_proj": (576, 576),
    "k_proj": (576, 192),
    "v_proj": (576, 192),
    "o_proj": (576, 576),
    "gate_proj": (576, 1536),
    "up_proj": (576, 1536),
    "down_proj": (1536, 576),
}


@dataclass(frozen=True)
class Target:
    """Modules to adapt, from layer `lowest` upwards."""

    modules: tuple[str, ...]
    lowest: int = 0

    @property
    def layers(self) -> list[int]:
        return list(range(self.lowest, LAYERS))

    @property
    def trainable_parameters(self) -> int:
        return len(self.layers) * sum(RANK * sum(WIDTHS[name]) for name in self.modules)


SINGLE = Target(("o_proj",))
ALL_LINEAR = Target(tuple(WIDTHS))
_MODULES = (
    ("o_proj",),
    ("q_proj", "v_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    tuple(WIDTHS),
    ("o_proj", "down_proj"),
    ("down_proj",),
    ("v_proj",),
)
# Eight arms of one call, by name.
ARMS = {
    "eight arms on all layers": [Target(modules) for modules in _MODULES],
    "eight arms on the top quarter": [Target(modules, lowest=22) for modules in _MODULES],
}
