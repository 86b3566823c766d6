"""Finds rows whose prompts are the same or nearly the same, whatever fixed instruction surrounds them.

Prompts are compared by the Jaccard index of their shingles (every three consecutive words), with the usual
threshold of 0.8 for near duplicates (Lee et al. 2022, arXiv 2107.06499). Shingles of many prompts belong to
an instruction: they do not count where two prompts share them, only where they differ. The other shingles are
rare, so an inverted index finds the exact pairs without the approximation of MinHash. Knows no files.
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
Integers = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
Flags = numpy.ndarray[Any, numpy.dtype[numpy.bool_]]

JACCARD_THRESHOLD = 0.8
SHINGLE_WORDS = 3
# A shingle of more prompts than this, or of more than a tenth of a few prompts, belongs to an instruction.
MAX_PROMPTS_PER_SHINGLE = 20
MAX_PROMPT_SHARE = 0.1
# Above this many shingles (64 MB) a sample is kept, the same one in every row.
MAX_SHINGLES = 8_000_000
# In a sample, a prompt with fewer shingles than this is not compared.
MIN_SAMPLED_SHINGLES = 10
WORDS_PER_BATCH = 200_000
PROMPTS_PER_BATCH = 2_000
# Scripts without spaces between words: each character counts as a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD_PATTERN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
# Characters at the ends of a prompt that do not change its question.
EDGE_CHARACTERS = " .,;:!?…。！？"


def normalise(text: str) -> str:
    """Return the text with Unicode NFKC, case folding and single spaces."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return " ".join(plain.casefold().split())


def text_key(*texts: str) -> bytes:
    """Return eight bytes, equal for normalised texts that differ only in punctuation at their ends."""
    joined = "\0".join(text.strip(EDGE_CHARACTERS) or text for text in texts)
    return hashlib.blake2b(joined.encode(), digest_size=8).digest()


def max_rows_per_prompt(rows: int) -> int:
    """Return how many of `rows` may share a prompt; above, it is an instruction that no split could hold."""
    return max(2, int(rows * MAX_PROMPT_SHARE))


@dataclass(frozen=True)
class NearDuplicates:
    """The prompt of each row and the pairs of similar prompts.

    `prompts` [rows]: the prompt's number from 0, equal for rows with the same prompt. `pairs` [n, 2]: similar
    prompts. `is_sampled`: only a sample of the shingles was compared.
    """

    prompts: Integers
    pairs: Integers
    is_sampled: bool = False

    def row_groups(self) -> Integers:
        """Return [rows] the number of each row's group: the connected components of the similar prompts."""
        count = int(self.prompts.max()) + 1 if len(self.prompts) else 0
        edges = (numpy.ones(len(self.pairs), dtype=bool), (self.pairs[:, 0], self.pairs[:, 1]))
        _, components = connected_components(csr_matrix(edges, shape=(count, count)), directed=False)
        groups: Integers = components.astype(numpy.int64)[self.prompts]
        return groups

    def similar_rows(self, rows: Flags) -> Flags:
        """Return [rows] which rows have the same or a similar prompt as one of the flagged `rows`."""
        flagged = numpy.zeros(int(self.prompts.max()) + 1, dtype=bool)
        flagged[self.prompts[rows]] = True
        similar = flagged.copy()
        left, right = self.pairs[:, 0], self.pairs[:, 1]
        similar[right[flagged[left]]] = True
        similar[left[flagged[right]]] = True
        return similar[self.prompts]


class _WordHashes(dict[str, int]):
    """A bounded cache: word -> its CRC-32, which is the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) >= WORDS_PER_BATCH:
            self.clear()
        self[word] = number = zlib.crc32(word.encode())
        return number


@dataclass
class ShingleIndex:
    """The shingles of all prompts, collected one row at a time within bounded memory."""

    rows: int = 0
    is_sampled: bool = False
    _count: int = 0
    _max_hash: int = 2**64 - 1
    _word_hashes: _WordHashes = field(default_factory=_WordHashes)
    _words: list[int] = field(default_factory=list)
    _lengths: list[int] = field(default_factory=list)
    _batches: list[tuple[Integers, Hashes]] = field(default_factory=list)

    def add(self, prompt: str) -> None:
        """Add the normalised prompt of the next row."""
        words = [self._word_hashes[word] for word in WORD_PATTERN.findall(prompt)]
        words += [0] * (SHINGLE_WORDS - len(words))
        self._words += words
        self._lengths.append(len(words))
        if len(self._words) >= WORDS_PER_BATCH:
            self._hash_batch()

    def shingles(self) -> tuple[Integers, Hashes]:
        """Return (row, shingle) [n] of all shingles that were kept, and release them."""
        self._hash_batch()
        if not self._batches:
            return numpy.zeros(0, dtype=numpy.int64), numpy.zeros(0, dtype=numpy.uint64)
        rows, hashes = zip(*self._batches, strict=True)
        self._batches = []
        return numpy.concatenate(rows), numpy.concatenate(hashes)

    def _hash_batch(self) -> None:
        """Hash every three consecutive words of the collected prompts, never across two prompts."""
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
        is_kept = (row[:-2] == row[2:]) & (hashes <= numpy.uint64(self._max_hash))
        self._batches.append((row[:-2][is_kept], hashes[is_kept]))
        self._count += int(is_kept.sum())
        while self._count > MAX_SHINGLES:
            self._halve()

    def _halve(self) -> None:
        # A hash is kept in all rows or in none, so the Jaccard index of two rows stays unbiased.
        self._max_hash, self.is_sampled = self._max_hash // 2, True
        limit = numpy.uint64(self._max_hash)
        self._batches = [(row[hashes <= limit], hashes[hashes <= limit]) for row, hashes in self._batches]
        self._count = sum(len(hashes) for _, hashes in self._batches)


def splitmix64(values: Hashes) -> Hashes:
    """Return the finaliser of splitmix64 (Steele et al. 2014): each input bit flips half the output bits."""
    values = (values ^ (values >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return values ^ (values >> numpy.uint64(31))


def find_near_duplicates(
    index: ShingleIndex, prompt_keys: Hashes, row_keys: Hashes, check_stop: Callable[[], None]
) -> NearDuplicates:
    """Find the rows with the same or nearly the same prompt.

    `prompt_keys`, `row_keys` [rows]: the keys of each prompt, and of prompt and answer together. Rows whose
    prompt is an instruction count as equal only if their answers are equal too. `check_stop` may raise.
    """
    max_rows = max_rows_per_prompt(len(prompt_keys))
    _, prompt, counts = numpy.unique(prompt_keys, return_inverse=True, return_counts=True)
    is_instruction = counts[prompt] > max_rows
    keys = numpy.where(is_instruction, row_keys, prompt_keys)
    _, first, prompts = numpy.unique(keys, return_index=True, return_inverse=True)
    prompts = prompts.astype(numpy.int64)
    rows, hashes = index.shingles()
    # One row stands for each prompt. A bare instruction has no shingles of its own to compare.
    is_representative = numpy.zeros(len(prompt_keys), dtype=bool)
    is_representative[first] = True
    is_representative &= ~is_instruction
    rows, hashes = rows[is_representative[rows]], hashes[is_representative[rows]]
    check_stop()
    min_shingles = MIN_SAMPLED_SHINGLES if index.is_sampled else 1
    pairs = _similar_pairs(prompts[rows], hashes, len(first), min_shingles, check_stop)
    return NearDuplicates(prompts, pairs, index.is_sampled)


def _similar_pairs(
    prompts: Integers, hashes: Hashes, count: int, min_shingles: int, check_stop: Callable[[], None]
) -> Integers:
    """Return [n, 2] the pairs of the `count` prompts whose Jaccard index reaches the threshold.

    `prompts`, `hashes` [shingles]: which prompt has which shingle.
    """
    distinct, columns = numpy.unique(hashes, return_inverse=True)
    check_stop()
    ones = numpy.ones(len(prompts), dtype=numpy.int32)
    shingles = csr_matrix((ones, (prompts, columns)), shape=(count, max(1, len(distinct))))
    shingles.data[:] = 1  # a shingle that occurs twice in a prompt counts once
    frequency = numpy.bincount(shingles.indices, minlength=shingles.shape[1])
    is_common = frequency > min(MAX_PROMPTS_PER_SHINGLE, max_rows_per_prompt(count))
    common = _select_columns(shingles, is_common)
    rare = _select_columns(shingles, ~is_common)
    shared = _select_columns(shingles, ~is_common & (frequency > 1))
    shared_transposed = shared.T.tocsr()
    rare_sizes, sizes = numpy.diff(rare.indptr), numpy.diff(shingles.indptr)
    pairs = [numpy.zeros((0, 2), dtype=numpy.int64)]
    for start in range(0, count, PROMPTS_PER_BATCH):
        check_stop()
        overlaps = (shared[start : start + PROMPTS_PER_BATCH] @ shared_transposed).tocoo()
        left, right, overlap = overlaps.row + start, overlaps.col, overlaps.data
        is_candidate = (left < right) & (
            overlap >= JACCARD_THRESHOLD * (rare_sizes[left] + rare_sizes[right] - overlap)
        )
        is_candidate &= numpy.minimum(rare_sizes[left], rare_sizes[right]) >= min_shingles
        left, right, overlap = left[is_candidate], right[is_candidate], overlap[is_candidate]
        common_overlap = numpy.asarray(common[left].multiply(common[right]).sum(axis=1)).ravel()
        difference = sizes[left] + sizes[right] - 2 * (overlap + common_overlap)
        is_similar = overlap >= JACCARD_THRESHOLD * (overlap + difference)
        pairs.append(numpy.stack([left[is_similar], right[is_similar]], axis=1).astype(numpy.int64))
    return numpy.concatenate(pairs)


def _select_columns(matrix: Any, is_selected: Flags) -> Any:
    """Return a copy of the matrix with the other columns empty."""
    selected = matrix.copy()
    selected.data[~is_selected[selected.indices]] = 0
    selected.eliminate_zeros()
    return selected
