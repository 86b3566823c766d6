"""Finds rows that ask the same, or nearly the same, however often a fixed instruction stands around it.

Prompts are compared by their shingles, every three words in a row, by the Jaccard index with the usual
threshold for near duplicates (Lee et al., arXiv 2107.06499). Wording that many prompts have is an
instruction: shared, it counts for nothing; where it differs, it counts. What is left stands in few prompts,
so an index of it gives the exact pairs, without the chance of MinHash. Knows no files and no splits.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

Hashes = numpy.ndarray[Any, numpy.dtype[numpy.uint64]]
Numbers = numpy.ndarray[Any, numpy.dtype[numpy.int64]]

JACCARD_THRESHOLD = 0.8
SHINGLE_WORDS = 3
# Wording of more prompts than this, or of more than a tenth where prompts are few, is an instruction.
MAX_PROMPTS_PER_SHINGLE = 20
MAX_PROMPT_SHARE = 0.1
# Beyond so many shingles (64 MB) a sample of them is kept, the same one in every row.
MAX_SHINGLES = 8_000_000
# Of a sample, fewer shingles than these say too little.
MIN_SAMPLED_SHINGLES = 10
WORDS_PER_BATCH = 200_000
PROMPTS_PER_BATCH = 2_000
# Scripts that are written without spaces between words: there each character counts as one.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD_PATTERN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
# What may stand at a prompt's ends without changing what is asked.
EDGE_CHARACTERS = " .,;:!?…。！？"


def normalise(text: str) -> str:
    """The text without what nobody reads: case, runs of white space, compatible forms of a letter."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(plain.casefold().split())


def text_key(*plain: str) -> bytes:
    """Eight bytes that are equal for normalised texts that differ in nothing but the marks at their ends."""
    told = "\0".join(text.strip(EDGE_CHARACTERS) or text for text in plain)
    return hashlib.blake2b(told.encode(), digest_size=8).digest()


class _WordHashes(dict[str, int]):
    """Word -> 32 bits of it, the same in every process. A cache, emptied when it has grown."""

    def __missing__(self, word: str) -> int:
        if len(self) >= WORDS_PER_BATCH:
            self.clear()
        self[word] = number = zlib.crc32(word.encode())
        return number


def max_rows_per_prompt(rows: int) -> int:
    """A prompt of more rows than this is an instruction: no held-out split could take all of them."""
    return max(2, int(rows * MAX_PROMPT_SHARE))


@dataclass(frozen=True)
class NearDuplicates:
    """`prompts[i]`: the number of the prompt of row i, from 0; equal for rows that ask the same.

    `pairs` [n, 2]: prompts that are nearly the same. `sampled`: only a sample of the wording was compared.
    """

    prompts: Numbers
    pairs: Numbers
    sampled: bool = False

    def row_groups(self) -> Numbers:
        """Row -> the number of all that ask nearly the same, by however many steps."""
        count = int(self.prompts.max()) + 1 if len(self.prompts) else 0
        linked = csr_matrix(
            (numpy.ones(len(self.pairs), dtype=bool), (self.pairs[:, 0], self.pairs[:, 1])),
            shape=(count, count),
        )
        found: Numbers = connected_components(linked, directed=False)[1].astype(numpy.int64)[self.prompts]
        return found

    def similar_rows(self, rows: numpy.ndarray[Any, numpy.dtype[numpy.bool_]]) -> Any:
        """Which rows ask the same, or nearly the same, as one of `rows` (a flag for each row)."""
        held = numpy.zeros(int(self.prompts.max()) + 1, dtype=bool)
        held[self.prompts[rows]] = True
        near = held.copy()
        for one, other in ((0, 1), (1, 0)):
            near[self.pairs[held[self.pairs[:, one]], other]] = True
        return near[self.prompts]


@dataclass
class ShingleIndex:
    """Collects the shingles of prompts, a row at a time, within bounded memory."""

    rows: int = 0
    sampled: bool = False
    _kept: int = 0
    _limit: int = 2**64 - 1
    _numbers: _WordHashes = field(default_factory=_WordHashes)
    _words: list[int] = field(default_factory=list)
    _lengths: list[int] = field(default_factory=list)
    _parts: list[tuple[Numbers, Hashes]] = field(default_factory=list)

    def add(self, plain: str) -> None:
        """The normalised prompt of the next row."""
        numbers = self._numbers
        words = [numbers[piece] for piece in WORD_PATTERN.findall(plain)]
        words += [0] * (SHINGLE_WORDS - len(words))
        self._words += words
        self._lengths.append(len(words))
        if len(self._words) >= WORDS_PER_BATCH:
            self._shingle()

    def _shingle(self) -> None:
        """Turn the words so far into hashes of three in a row, none of them across two prompts."""
        words = numpy.array(self._words, dtype=numpy.uint64)
        lengths = numpy.array(self._lengths, dtype=numpy.int64)
        row = numpy.repeat(numpy.arange(self.rows, self.rows + len(lengths)), lengths)
        self.rows += len(lengths)
        self._words, self._lengths = [], []
        if not len(words):
            return
        hashes = splitmix64(
            words[:-2] * numpy.uint64(0x9E3779B97F4A7C15)
            + words[1:-1] * numpy.uint64(0xC2B2AE3D27D4EB4F)
            + words[2:] * numpy.uint64(0x165667B19E3779F9)
        )
        inside = (row[:-2] == row[2:]) & (hashes <= numpy.uint64(self._limit))
        self._keep(row[:-2][inside], hashes[inside])

    def _keep(self, rows: Numbers, hashes: Hashes) -> None:
        self._parts.append((rows, hashes))
        self._kept += len(hashes)
        while self._kept > MAX_SHINGLES:
            # A hash is kept in all rows or in none, so what two rows share stays in proportion.
            self._limit, self.sampled = self._limit // 2, True
            small = [(row, found, found <= numpy.uint64(self._limit)) for row, found in self._parts]
            self._parts = [(row[kept], found[kept]) for row, found, kept in small]
            self._kept = sum(len(found) for _row, found in self._parts)

    def shingles(self) -> tuple[Numbers, Hashes]:
        """(row, shingle) of all that was kept."""
        self._shingle()
        if not self._parts:
            return numpy.zeros(0, dtype=numpy.int64), numpy.zeros(0, dtype=numpy.uint64)
        rows, hashes = zip(*self._parts, strict=True)
        self._parts = []
        return numpy.concatenate(rows), numpy.concatenate(hashes)


def splitmix64(values: Hashes) -> Hashes:
    """The last steps of splitmix64: every bit of a value moves half the bits of the result."""
    values = (values ^ (values >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return values ^ (values >> numpy.uint64(31))


def find_near_duplicates(
    wording: ShingleIndex, asked: Hashes, whole: Hashes, check: Callable[[], None]
) -> NearDuplicates:
    """Which rows ask nearly the same. `asked`, `whole`: keys of each row's prompt, and of prompt and answer.

    Rows of a prompt that is an instruction are told apart by their answers too. `check` may raise to stop.
    """
    _, prompt, counts = numpy.unique(asked, return_inverse=True, return_counts=True)
    keys = numpy.where(counts[prompt] > max_rows_per_prompt(len(asked)), whole, asked)
    _, first, prompts = numpy.unique(keys, return_index=True, return_inverse=True)
    prompts = prompts.astype(numpy.int64)
    rows, hashes = wording.shingles()
    speaks = numpy.zeros(len(asked), dtype=bool)
    speaks[first] = True
    # An instruction that stands alone has no wording of its own to compare.
    speaks &= counts[prompt] <= max_rows_per_prompt(len(asked))
    rows, hashes = rows[speaks[rows]], hashes[speaks[rows]]
    check()
    pairs = _pairs(prompts[rows], hashes, len(first), MIN_SAMPLED_SHINGLES if wording.sampled else 1, check)
    return NearDuplicates(prompts, pairs, wording.sampled)


def _pairs(prompts: Numbers, hashes: Hashes, count: int, least: int, check: Callable[[], None]) -> Numbers:
    """Pairs of prompts whose own wording is the same by at least JACCARD_THRESHOLD."""
    distinct, columns = numpy.unique(hashes, return_inverse=True)
    check()
    ones = numpy.ones(len(prompts), dtype=numpy.int32)
    has = csr_matrix((ones, (prompts, columns)), shape=(count, max(1, len(distinct))))
    has.data[:] = 1  # a shingle that stands twice in a prompt counts once
    spread = numpy.bincount(has.indices, minlength=has.shape[1])
    common = spread > min(MAX_PROMPTS_PER_SHINGLE, max_rows_per_prompt(count))
    own = _only(has, ~common)
    shared = _only(has, ~common & (spread > 1))
    sizes, all_sizes = numpy.diff(own.indptr), numpy.diff(has.indptr)
    instruction = _only(has, common)
    found = [numpy.zeros((0, 2), dtype=numpy.int64)]
    across = shared.T.tocsr()
    for start in range(0, count, PROMPTS_PER_BATCH):
        check()
        both = (shared[start : start + PROMPTS_PER_BATCH] @ across).tocoo()
        one, other, alike = both.row + start, both.col, both.data
        likely = (one < other) & (alike >= JACCARD_THRESHOLD * (sizes[one] + sizes[other] - alike))
        likely &= numpy.minimum(sizes[one], sizes[other]) >= least
        one, other, alike = one[likely], other[likely], alike[likely]
        told = numpy.asarray(instruction[one].multiply(instruction[other]).sum(axis=1)).ravel()
        differs = all_sizes[one] + all_sizes[other] - 2 * (alike + told)
        near = alike >= JACCARD_THRESHOLD * (alike + differs)
        found.append(numpy.stack([one[near], other[near]], axis=1).astype(numpy.int64))
    return numpy.concatenate(found)


def _only(has: Any, wanted: Any) -> Any:
    """The matrix with the wanted columns alone, the others empty."""
    kept = has.copy()
    kept.data[~wanted[kept.indices]] = 0
    kept.eliminate_zeros()
    return kept
