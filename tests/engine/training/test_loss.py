"""The head at labelled positions equals the plain path in loss and gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.tiny_model import build_tiny_model, chat, tiny_base
from workers.contract.specs import PREFIX_TYPES
from workers.engine.base_models.model import load_base, load_tokenizer, plain_head
from workers.engine.training import loss
from workers.engine.training.data import Batch, pad, shared_prefix
from workers.engine.training.encoding import CanonicalRow, Example, encode
from workers.engine.training.loss import (
    BF16_CPU_MULTIPLE,
    PROVEN_TYPES,
    LabelledLoss,
    Scorer,
    highest,
    make_scorer,
)
from workers.engine.training.packed import PACKED, attention, pack

CPU = torch.device("cpu")


SHORT, LONG = chat("Short?", "yes"), chat("A longer question?", "no, not at all")
SYSTEM = {"role": "system", "content": "Name the colour of what you are told."}


def load(folder: Path, model_type: str, *chats: list[Any]) -> tuple[Any, list[Example]]:
    base = tiny_base(build_tiny_model(folder, model_type=model_type))
    rows = [CanonicalRow(number, messages, None) for number, messages in enumerate(chats or (SHORT, LONG), 1)]
    return load_base(base, torch.float32, CPU), encode(load_tokenizer(base), rows)


def gradient(scorer: Scorer, model: Any, batch: Batch) -> torch.Tensor:
    """The gradient of the lowest layer, which has passed through everything above it."""
    layers = [item.requires_grad_(True) for name, item in model.named_parameters() if ".0." in name]
    parts = torch.autograd.grad(scorer.training_loss(batch, len(batch.targets))[0], layers)
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("chunk", [3, 256])
def test_labelled_loss_equals_cross_entropy(chunk: int) -> None:
    torch.manual_seed(1)
    hidden, head = torch.randn(10, 16, requires_grad=True), torch.randn(50, 16)
    targets, weights = (hidden @ head.T).argmax(-1), torch.rand(10)
    targets[:4] += 1
    expected = (functional.cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()
    (wanted,) = torch.autograd.grad(expected, hidden)
    found, correct = LabelledLoss.apply(hidden, head, targets, weights, chunk)
    (gradient,) = torch.autograd.grad(3 * found, hidden)
    assert int(correct) == 6
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(gradient, 3 * wanted, atol=1e-6)


def test_an_offset_of_all_logits_costs_no_precision() -> None:
    torch.manual_seed(0)
    head = torch.randn(8192, 64) * 0.1 + 2
    hidden = (torch.randn(100, 64) * 0.3 + 1).requires_grad_()
    targets = torch.randint(0, 8192, (100,))
    exact = hidden.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(functional.cross_entropy(exact @ head.double().T, targets), exact)
    found, _correct = LabelledLoss.apply(hidden, head, targets, torch.full((100,), 0.01), 256)
    (gradient,) = torch.autograd.grad(found, hidden)
    assert (gradient - wanted).norm() < 2e-5 * wanted.norm()


@pytest.mark.parametrize("vocabulary", [512, 1003])
def test_first_of_the_highest_logits_is_found(vocabulary: int) -> None:
    torch.manual_seed(0)
    logits = torch.randint(0, 300, (50, vocabulary)).float()
    top, token = highest(logits)
    assert torch.equal(top, logits.amax(-1))
    assert token.tolist() == [row.index(max(row)) for row in logits.tolist()]


@torch.no_grad()
def row_with_correct_labels(model: Any, row: int) -> Example:
    """A row that begins as all others do; Transformers' logits are highest at every second of its labels."""
    ids = [*range(20, 32), 40 + row]
    labels = 2 + 2 * row
    for place in range(labels):
        predicted = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(predicted if place % 2 else (predicted + 1) % model.config.vocab_size)
    mask = np.arange(len(ids)) >= len(ids) - labels
    return Example(row, np.array(ids, dtype=np.int32), mask)


@pytest.mark.parametrize("model_type", sorted(PROVEN_TYPES))
def test_every_layout_counts_the_labels_that_transformers_predicts(tmp_path: Path, model_type: str) -> None:
    model, _examples = load(tmp_path / "m", model_type)
    examples = [row_with_correct_labels(model, row) for row in range(3)]
    expected = [place % 2 == 1 for labels in (2, 4, 6) for place in range(labels)]
    packed = make_scorer(model, model, examples, CPU)
    assert packed.is_packed
    for scorer in (Scorer(model), Scorer(model, model.base_model, plain_head(model)), packed):
        for share_prefix in (False, True):
            batch = scorer.collate(examples, CPU, share_prefix=share_prefix)
            with attention(model.config, PACKED if scorer.is_packed else "sdpa"):
                _losses, is_correct = scorer.token_scores(batch)
                _loss, correct = scorer.training_loss(batch, len(expected))
            assert is_correct.tolist() == expected
            assert int(correct) == 6


@pytest.mark.parametrize("model_type", sorted(PROVEN_TYPES))
def test_packed_rows_give_the_losses_and_gradients_of_the_plain_path(tmp_path: Path, model_type: str) -> None:
    model, examples = load(tmp_path / "m", model_type)
    plain, batch = Scorer(model), pad(examples, CPU)
    losses, wanted = plain.token_losses(batch), gradient(plain, model, batch)
    fast = make_scorer(model, model, examples, CPU)
    packed = fast.collate(examples, CPU, share_prefix=False)
    # The last target of each row and the line break behind it predict nothing.
    assert packed.input_ids.shape == (1, packed.tokens - 2 * len(examples))
    assert torch.allclose(fast.token_losses(packed), losses, atol=1e-5)
    assert (gradient(fast, model, packed) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("model_type", sorted(PROVEN_TYPES))
def test_filling_behind_the_last_row_changes_nothing(tmp_path: Path, model_type: str) -> None:
    model, examples = load(tmp_path / "m", model_type)
    scorer = make_scorer(model, model, examples, CPU)
    exact, filled = (pack(examples, CPU, share_prefix=False, multiple=count) for count in (1, 256))
    assert exact.input_ids.shape[1] < filled.input_ids.shape[1] == 256
    assert filled.position_ids is not None
    assert int(filled.position_ids.max()) < len(examples[1].ids)
    assert torch.allclose(scorer.token_losses(filled), scorer.token_losses(exact), atol=1e-5)
    wanted = gradient(scorer, model, exact)
    assert (gradient(scorer, model, filled) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("model_type", sorted(PREFIX_TYPES))
def test_a_shared_prefix_changes_neither_losses_nor_gradients(tmp_path: Path, model_type: str) -> None:
    chats = [[SYSTEM, *messages] for messages in (SHORT, LONG, chat("Skin", "it depends"))]
    model, examples = load(tmp_path / "m", model_type, *chats)
    scorer = make_scorer(model, model, examples, CPU)
    whole, parted = scorer.collate(examples, CPU, share_prefix=False), scorer.collate(examples, CPU)
    assert whole.input_ids.shape[1] - parted.input_ids.shape[1] > 2 * 40
    assert parted.tokens == whole.tokens
    assert torch.allclose(scorer.token_losses(parted), scorer.token_losses(whole), atol=1e-5)
    wanted = gradient(scorer, model, whole)
    assert (gradient(scorer, model, parted) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("is_packed", [True, False])
def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(
    tmp_path: Path, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [[SYSTEM, *messages] for messages in (SHORT, LONG, chat("Skin", "it depends"))]
    model, examples = load(tmp_path / "m", "llama", *chats)
    padded = Scorer(model, model.base_model, plain_head(model))
    scorer = make_scorer(model, model, examples, CPU) if is_packed else padded
    whole = scorer.collate(examples, CPU)
    monkeypatch.setattr(loss, "CPU_BATCH_TOKENS", len(examples[0].ids))
    parts = list(scorer.batches([examples[:2], examples[2:]], CPU))
    assert len(parts) == (2 if is_packed else 3)  # the prefix, which is most of a row, counts once
    labelled = len(whole.targets)
    wanted, correct = scorer.training_loss(whole, labelled)
    found = [scorer.training_loss(part, labelled) for part in parts]
    assert sum(int(count) for _loss, count in found) == int(correct)
    assert float(sum(value for value, _count in found)) == pytest.approx(float(wanted.detach()), rel=1e-5)
    together = gradient(scorer, model, whole)
    summed = sum(gradient(scorer, model, part) * len(part.targets) / labelled for part in parts)
    assert (summed - together).norm() < 1e-5 * together.norm()


def test_packed_rows_in_bfloat16_have_the_mean_loss_of_padded_ones(tmp_path: Path) -> None:
    model, examples = load(tmp_path / "m", "llama")
    model.to(torch.bfloat16)
    expected = Scorer(model).token_losses(pad(examples, CPU)).mean()
    scorer = make_scorer(model, model, examples, CPU)
    assert scorer.is_packed
    batch = scorer.collate(examples, CPU)
    assert batch.input_ids.shape[1] % BF16_CPU_MULTIPLE == 0
    found = scorer.token_losses(batch).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-2)


def test_a_row_alone_has_the_losses_that_it_has_among_others(tmp_path: Path) -> None:
    model, examples = load(tmp_path / "m", "llama")
    scorer = make_scorer(model, model, examples, CPU)
    together = scorer.token_losses(scorer.collate(examples, CPU))
    alone = torch.cat([scorer.token_losses(scorer.collate([example], CPU)) for example in examples])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_model_that_changes_its_logits_takes_the_plain_path(tmp_path: Path) -> None:
    model, examples = load(tmp_path / "m", "llama")
    model.config.final_logit_softcapping = 30.0
    assert plain_head(model) is None
    assert make_scorer(model, model, examples, CPU).head is None


def test_an_unproven_model_is_packed_if_that_gives_its_losses(tmp_path: Path) -> None:
    model, examples = load(tmp_path / "m", "mistral")
    model.config.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    assert make_scorer(model, model, examples, CPU).is_packed


def test_a_model_with_a_sliding_window_pads_its_rows(tmp_path: Path) -> None:
    model, examples = load(tmp_path / "m", "mistral")
    usual = model.config._attn_implementation
    assert model.config.sliding_window
    scorer = make_scorer(model, model, examples, CPU)
    assert scorer.head is not None
    assert not scorer.is_packed
    assert model.config._attn_implementation == usual


def test_an_unproven_model_whose_paths_differ_takes_the_plain_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples = load(tmp_path / "m", "mistral")
    real = type(model).forward

    def doubled(self: Any, *arguments: Any, **keywords: Any) -> Any:
        output = real(self, *arguments, **keywords)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(type(model), "forward", doubled)
    assert make_scorer(model, model, examples, CPU).head is None


def test_a_prefix_ends_before_what_predicts_an_answer(tmp_path: Path) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "m"))
    examples = encode(
        load_tokenizer(base),
        [CanonicalRow(1, chat("Same", "one"), None), CanonicalRow(2, chat("Same", "two"), None)],
    )
    assert shared_prefix(examples) == examples[0].prompt_length - 1
    assert shared_prefix(examples[:1]) == 0
