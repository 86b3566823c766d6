"""Tokenized training and validation rows, kept beside a dataset's Parquet files for later runs and arms.

A file for each split and tokenizer, mapped into memory: `<dataset>/tokens/<key>.npy`, int32. It holds the
number of rows n, then n lines of `COLUMNS`, then the tokens of all rows, whole and uncut. A learned token is
stored as its complement. The files go when the dataset goes, and may be deleted at any time. Test rows are
not kept: they are sealed, and scoring reads them from the file that the seal covers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workers.contract.specs import TrainSpec
from workers.engine import runtime
from workers.engine.base_models.model import tokenizer_record
from workers.engine.training.encoding import Example

# Raise it when rows come to be encoded in another way.
ENCODING_VERSION = 1
MOST_TOKENS = 16_000_000  # of a file: 64 MB
MOST_FILES = 8  # of a dataset, for each split and tokenizer
COLUMNS = ("position", "row", "length", "prompt length", "template is stable")


class TokenCache:
    """Tokenized rows of one split of a spec's data. Whatever cannot be read or written is tokenized again."""

    def __init__(self, spec: TrainSpec, split: str, tokenizer: Any) -> None:
        self.folder, self.path = Path(spec.data.path) / "tokens", None
        with contextlib.suppress(OSError):
            self.path = self.folder / f"{_key(spec, split, tokenizer)}.npy"

    def read(self, positions: Iterable[int]) -> dict[int, Example]:
        """Return position in the split -> example, without its texts, of the rows that are kept."""
        lines, tokens = self._load()
        ends = lines[:, 2].cumsum(dtype=np.int64)
        numbers = {int(position): number for number, position in enumerate(lines[:, 0])}
        found = {}
        for position in positions:
            number = numbers.get(position)
            if number is not None:
                _position, row, length, prompt_length, is_stable = (int(value) for value in lines[number])
                stored = tokens[ends[number] - length : ends[number]]
                learned = stored < 0
                ids = np.where(learned, ~stored, stored)
                found[position] = Example(
                    row, ids, learned, prompt_length, template_is_stable=bool(is_stable)
                )
        return found

    def add(self, examples: Mapping[int, Example]) -> None:
        """Keep these rows too, if they have room. Of two processes that write, the last one's file stays."""
        lines, tokens = self._load()
        known = set(lines[:, 0].tolist())
        new = {position: example for position, example in examples.items() if position not in known}
        total = len(tokens) + sum(len(example.ids) for example in new.values())
        if self.path is None or not new or total > MOST_TOKENS:
            return
        table = np.array([_line(position, example) for position, example in new.items()], dtype=np.int32)
        texts = (np.where(item.loss_mask, ~item.ids, item.ids) for item in new.values())
        parts = (np.array([len(lines) + len(new)]), lines.ravel(), table.ravel(), tokens, *texts)
        temporary = self.folder / f".{os.getpid()}"
        with contextlib.suppress(OSError):
            try:
                self.folder.mkdir(mode=0o750, exist_ok=True)
                with temporary.open("wb") as file:
                    np.save(file, np.concatenate(parts).astype(np.int32), allow_pickle=False)
                    os.fsync(file.fileno())
                temporary.replace(self.path)
                by_age = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
                for path in by_age[MOST_FILES:]:
                    path.unlink(missing_ok=True)
            finally:
                temporary.unlink(missing_ok=True)

    def _load(self) -> tuple[Any, Any]:
        """Return the lines [n, columns] and the tokens of the file; none if it is missing or damaged."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            if self.path is not None:
                stored = np.load(self.path, mmap_mode="r", allow_pickle=False)
                end = 1 + int(stored[0]) * len(COLUMNS)
                lines, tokens = stored[1:end].reshape(-1, len(COLUMNS)), stored[end:]
                if stored.dtype == np.int32 and int(lines[:, 2].sum(dtype=np.int64)) == len(tokens):
                    return lines, tokens
        return np.zeros((0, len(COLUMNS)), dtype=np.int32), np.zeros(0, dtype=np.int32)


def _line(position: int, example: Example) -> tuple[int, ...]:
    return position, example.row, len(example.ids), example.prompt_length, example.template_is_stable


def _key(spec: TrainSpec, split: str, tokenizer: Any) -> str:
    """Return a hash of everything that decides the tokens."""
    rows = (Path(spec.data.path) / f"{split}.parquet").stat()
    versions = runtime.versions()
    counted = [
        ENCODING_VERSION,
        [spec.data.sha256, split, rows.st_size, rows.st_mtime_ns],
        tokenizer_record(spec.base, tokenizer),
        [versions.get(name) for name in ("tokenizers", "transformers")],
    ]
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:32]
