"""Tokenized rows are kept for later runs, which read the same examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.conftest import Recorder
from tests.tiny_model import chat, colour_rows, write_canonical
from workers.contract.specs import DataSpec, TrainSpec
from workers.engine import token_cache
from workers.engine.base_models.model import load_tokenizer
from workers.engine.token_cache import TokenCache
from workers.engine.training import data as data_module
from workers.engine.training.arms import Arm, prepare_arms
from workers.engine.training.encoding import Example
from workers.engine.training.train import train

MakeSpec = Callable[..., TrainSpec]


@pytest.fixture
def data(tmp_path: Path) -> DataSpec:
    """Rows that nothing has tokenized yet."""
    return write_canonical(tmp_path / "data", colour_rows())


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every call that tokenizes."""
    counts: list[int] = []
    real = data_module.RowEncoder.encode

    def count(self: Any, rows: Any) -> list[Example]:
        counts.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(data_module.RowEncoder, "encode", count)
    return counts


def files(spec: TrainSpec) -> list[Path]:
    return sorted((Path(spec.data.path) / "tokens").glob("*"))


def cache(spec: TrainSpec) -> TokenCache:
    return TokenCache(spec, "train", load_tokenizer(spec.base))


def example(row: int = 1, tokens: int = 5) -> Example:
    learned = np.arange(tokens) > 2
    return Example(row, np.arange(tokens, dtype=np.int32), learned, 3, template_is_stable=False)


def prepare(spec: TrainSpec) -> Arm:
    tokenizer = load_tokenizer(spec.base)
    return prepare_arms([spec], tokenizer, Recorder(), lambda: "")[0]


def test_a_second_run_tokenizes_nothing_and_has_the_same_losses(
    make_spec: MakeSpec, tmp_path: Path, encoded: list[int]
) -> None:
    first, second = Recorder(), Recorder()
    train([make_spec()], tmp_path / "a", report=first)
    assert sum(encoded) == 24 + 4
    train([make_spec()], tmp_path / "b", report=second)
    assert sum(encoded) == 24 + 4
    for name in ("train/loss", "validation/loss"):
        assert second.series(name) == first.series(name)


def test_rows_are_kept_whole_for_another_maximum_length(make_spec: MakeSpec, encoded: list[int]) -> None:
    prepare(make_spec(max_length=36))
    arm = prepare(make_spec())
    assert max(len(example.ids) for example in arm.examples.values()) > 36
    assert sum(encoded) == 24 + 4


def test_a_run_tokenizes_only_rows_that_no_run_has_read(make_spec: MakeSpec, encoded: list[int]) -> None:
    short = {"max_steps": 1, "validation_rows": 0}
    prepare(make_spec(**short))
    assert encoded == [4]
    prepare(make_spec(max_steps=6, validation_rows=0))
    assert encoded == [4, 20]
    prepare(make_spec(**short, seed=7))
    assert encoded == [4, 20]


def test_a_kept_row_is_the_row_that_was_encoded(make_spec: MakeSpec) -> None:
    rows = cache(make_spec())
    rows.add({7: example(), 3: example(row=9, tokens=300)})
    rows.add({5: example(row=2, tokens=1)})
    found = cache(make_spec()).read([3, 4, 5, 7])
    for position, wanted in ((3, example(9, 300)), (5, example(2, 1)), (7, example())):
        kept = found.pop(position)
        assert kept.ids.tolist() == wanted.ids.tolist()
        assert kept.loss_mask.tolist() == wanted.loss_mask.tolist()
        assert (kept.row, kept.prompt_length, kept.template_is_stable) == (wanted.row, 3, False)
    assert not found


def test_changed_rows_are_tokenized_again(make_spec: MakeSpec, tmp_path: Path, encoded: list[int]) -> None:
    prepare(make_spec())
    changed = write_canonical(tmp_path / "data", [*colour_rows(23), chat("More?", "yes")])
    prepare(make_spec(data=changed))
    assert sum(encoded) == 2 * (24 + 4)


@pytest.mark.parametrize("damage", [b"", b"not an array", "cut"])
def test_a_damaged_file_is_ignored_and_replaced(make_spec: MakeSpec, damage: bytes | str) -> None:
    rows = cache(make_spec())
    rows.add({1: example()})
    (file,) = files(make_spec())
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] if isinstance(damage, str) else damage)
    assert rows.read([1]) == {}
    rows.add({1: example()})
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_no_run(make_spec: MakeSpec, encoded: list[int]) -> None:
    (Path(make_spec().data.path) / "tokens").write_text("A file is in the way.")
    for _run in range(2):
        assert len(prepare(make_spec()).examples) == 24
    assert sum(encoded) == 2 * (24 + 4)


def test_the_cache_is_bounded(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "MOST_TOKENS", 12)
    monkeypatch.setattr(token_cache, "MOST_FILES", 3)
    rows = cache(make_spec())
    rows.add({1: example(tokens=8)})
    rows.add({2: example(tokens=5)})
    assert list(rows.read([1, 2])) == [1]
    for version in range(4):
        monkeypatch.setattr(token_cache, "ENCODING_VERSION", version)
        cache(make_spec()).add({1: example()})
    assert len(files(make_spec())) == 3
