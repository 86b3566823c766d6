"""Encodes rows as tokens and targets, orders and batches them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_model import build_tiny_model, chat, tiny_base, write_canonical
from workers.contract.errors import DataError
from workers.engine.base_models.model import load_tokenizer
from workers.engine.training.data import Split, cut_batch, epoch_order, micro_batches, pad, step_rows
from workers.engine.training.encoding import CanonicalRow, Example, encode

END = 2  # <|im_end|>, which is also the pad token


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(tiny_base(build_tiny_model(tmp_path_factory.mktemp("tok") / "m")))


@pytest.fixture
def bare(tiny_folder: Path, tmp_path: Path) -> Any:
    """A tokenizer without a chat template."""
    return load_tokenizer(tiny_base(build_tiny_model(tmp_path / "bare", chat_template=False)))


def learned(tokenizer: Any, example: Example) -> str:
    text: str = tokenizer.decode(example.ids[example.loss_mask].tolist())
    return text


def one(tokenizer: Any, messages: list[dict[str, Any]] | None, text: str | None = None) -> Example:
    return encode(tokenizer, [CanonicalRow(1, messages, text)])[0]


def test_only_the_answer_and_its_end_are_learned(tokenizer: Any) -> None:
    example = one(tokenizer, chat("What colour?", "red"))
    assert learned(tokenizer, example) == "red<|im_end|>"
    assert example.ids[example.loss_mask][-1] == END
    assert tokenizer.decode(example.ids[: example.prompt_length].tolist()).endswith("<|im_start|>assistant\n")


def test_every_answer_of_a_chat_is_learned(tokenizer: Any) -> None:
    example = one(tokenizer, [*chat("a", "first"), *chat("b", "second")])
    assert learned(tokenizer, example) == "first<|im_end|>second<|im_end|>"
    assert (example.prompt, example.answer) == ("a\n\nfirst\n\nb", "second")


def test_the_system_message_is_kept_for_a_row_of_one_turn(tokenizer: Any) -> None:
    brief = {"role": "system", "content": "Be brief."}
    assert one(tokenizer, chat("a", "b")).system == ""
    assert one(tokenizer, [brief, *chat("a", "b")]).truncate_left(4).system == "Be brief."
    assert one(tokenizer, [brief, *chat("a", "b"), *chat("c", "d")]).system is None
    assert one(tokenizer, None, "text").system is None


def test_an_answer_of_weight_zero_is_not_learned(tokenizer: Any) -> None:
    messages = [*chat("a", "first"), *chat("b", "second")]
    messages[1]["weight"] = 0
    assert learned(tokenizer, one(tokenizer, messages)) == "second<|im_end|>"


def test_a_chat_without_an_answer_has_nothing_to_learn(tokenizer: Any) -> None:
    assert one(tokenizer, [{"role": "user", "content": "hello"}]).target_count == 0


def test_template_that_rewrites_earlier_answers_learns_the_last(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ':' }}"
        "{% if m['role'] == 'assistant' and not loop.last %}{{ '...' }}"
        "{% else %}{{ m['content'] }}{% endif %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    example = one(tokenizer, [*chat("a", "first"), *chat("b", "second")])
    assert learned(tokenizer, example) == "second<|im_end|>"
    assert not example.template_is_stable


def test_template_without_an_end_token_gets_one(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"
    monkeypatch.setattr(
        tokenizer, "chat_template", template + "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    assert learned(tokenizer, one(tokenizer, chat("a", "yes"))) == "yes<|im_end|>"


def test_row_refused_by_the_template_is_named(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match=r"Row 12 does not fit.*no system role"):
        encode(tokenizer, [CanonicalRow(12, chat("a", "b"), None)])


def test_without_a_template_contents_are_joined_by_lines(bare: Any) -> None:
    example = one(bare, chat("What colour?", "red"))
    assert bare.decode(example.ids.tolist()) == "What colour?\nred<|im_end|>"
    assert learned(bare, example) == "red<|im_end|>"
    assert bare.decode(example.ids[: example.prompt_length].tolist()) == "What colour?\n"


def test_plain_text_is_learned_whole_with_its_end(tokenizer: Any) -> None:
    example = one(tokenizer, None, "abc")
    assert tokenizer.decode(example.ids.tolist()) == "abc<|im_end|>"
    assert example.loss_mask.tolist() == [False, True, True, True]


def test_truncation_keeps_the_start_or_the_answer(tokenizer: Any) -> None:
    example = one(tokenizer, chat("x" * 50, "red"))
    assert example.truncate(20).target_count == 0
    kept = example.truncate_left(8)
    assert learned(tokenizer, kept) == "red<|im_end|>"
    assert kept.ids[: kept.prompt_length].tolist() == example.ids[: example.prompt_length][-3:].tolist()


def test_padding_is_masked_by_length_not_by_id(tokenizer: Any) -> None:
    short, long = one(tokenizer, chat("a", "b")), one(tokenizer, chat("a longer one", "red and green"))
    batch = pad([short, long], torch.device("cpu"))
    assert (batch.targets == END).sum() == 2
    assert len(batch.targets) == short.target_count + long.target_count
    assert batch.tokens == len(short.ids) + len(long.ids)
    assert batch.input_ids.flatten()[batch.target_positions + 1].equal(batch.targets)


def test_rows_of_similar_length_share_a_step() -> None:
    count, rows_per_step = 1003, 4
    lengths = np.random.default_rng(1).integers(5, 500, count).astype(np.int32)
    steps = range(1, 252)
    grouped = [step_rows(count, rows_per_step, 42, step, lengths) for step in steps]
    assert sorted(row for rows in grouped for row in rows) == list(range(count))
    assert sum(len(rows) < rows_per_step for rows in grouped) == 1
    padding = [
        sum(max(lengths[rows]) * len(rows) - sum(lengths[rows]) for rows in order)
        for order in (grouped, [step_rows(count, rows_per_step, 42, step) for step in steps])
    ]
    assert padding[0] < 0.1 * padding[1]
    longest = [int(max(lengths[rows])) for rows in grouped[:50]]
    assert longest != sorted(longest), "the steps of a group come in a random order"


def test_characters_of_each_row(tmp_path: Path) -> None:
    data = write_canonical(tmp_path, ["four", chat("Sky", "blue"), "fifteen letters"])
    sizes = Split(data, "train").characters()
    assert (sizes[0], sizes[2]) == (4, 15)
    assert sizes[1] > 7


def test_each_epoch_draws_every_row_once_in_its_own_order() -> None:
    steps = [step_rows(10, 4, 42, step) for step in range(1, 7)]
    first, second = ([row for rows in part for row in rows] for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [len(rows) for rows in steps[:3]] == [4, 4, 2]


def test_the_order_depends_on_the_seed_alone() -> None:
    assert np.array_equal(epoch_order(50, 1, 0), epoch_order(50, 1, 0))
    assert not np.array_equal(epoch_order(50, 1, 0), epoch_order(50, 2, 0))


def test_batches_hold_rows_of_similar_length_longest_first(tokenizer: Any) -> None:
    examples = [one(tokenizer, chat("x" * size, "y")) for size in (30, 1, 31, 2)]
    lengths = [[len(example.ids) for example in batch] for batch in micro_batches(examples, 2)]
    ordered = [length for batch in lengths for length in batch]
    assert ordered == sorted(ordered, reverse=True)
    assert [len(batch) for batch in lengths] == [2, 2]


def rows_of(*lengths: int) -> list[Example]:
    return [
        Example(number, np.zeros(length, np.int32), np.ones(length, np.bool_))
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("lengths", "prefix", "parts"),
    [
        ((40, 30, 20, 10), 0, [[40, 30, 20, 10]]),  # as many as there may be
        ((50, 40, 30, 20, 10), 0, [[50, 40], [30, 20, 10]]),
        ((51, 51, 51, 51), 50, [[51, 51, 51, 51]]),
        ((300, 20, 10), 0, [[300], [20, 10]]),  # a row stays whole
    ],
)
def test_a_large_batch_is_cut_into_equal_parts(
    lengths: tuple[int, ...], prefix: int, parts: list[list[int]]
) -> None:
    found = cut_batch(rows_of(*lengths), 100, prefix)
    assert [[len(example.ids) for example in part] for part in found] == parts


def test_missing_split_is_refused(tmp_path: Path, make_spec: Callable[..., Any]) -> None:
    data = write_canonical(tmp_path / "gone", [chat("a", "b")])
    (tmp_path / "gone/test.parquet").unlink()
    with pytest.raises(DataError, match="test rows"):
        Split(data, "test")


def test_damaged_split_is_refused(tmp_path: Path) -> None:
    data = write_canonical(tmp_path / "bad", [chat("a", "b")])
    (tmp_path / "bad/test.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="Import the file again"):
        Split(data, "test")
