"""The head at labelled positions equals the plain path in loss and gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.tiny_model import build_tiny_model, chat, tiny_base
from workers.contract.specs import PREFIX_TYPES
from workers.engine.base_models.model import load_base, load_tokenizer, plain_head
from workers.engine.training.data import Batch, collate, shared_prefix
from workers.engine.training.encoding import CanonicalRow, encode
from workers.engine.training.loss import LabelledLoss, Scorer, make_scorer

CPU = torch.device("cpu")


def load(folder: Path, model_type: str) -> tuple[Any, Batch]:
    base = tiny_base(build_tiny_model(folder, model_type=model_type))
    rows = [
        CanonicalRow(1, chat("Short?", "yes"), None),
        CanonicalRow(2, chat("A longer question?", "no, not at all"), None),
    ]
    return load_base(base, torch.float32, CPU), collate(encode(load_tokenizer(base), rows), CPU)


@pytest.mark.parametrize("chunk", [3, 256])
def test_labelled_loss_equals_cross_entropy(chunk: int) -> None:
    torch.manual_seed(1)
    hidden, head = torch.randn(10, 16, requires_grad=True), torch.randn(50, 16)
    targets, weights = torch.randint(0, 50, (10,)), torch.rand(10)
    expected = (functional.cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()
    (wanted,) = torch.autograd.grad(expected, hidden)
    found = LabelledLoss.apply(hidden, head, targets, weights, chunk)
    (gradient,) = torch.autograd.grad(3 * found, hidden)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(gradient, 3 * wanted, atol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2", "gpt_neox", "opt"])
def test_both_paths_give_the_same_losses_and_gradients(tmp_path: Path, model_type: str) -> None:
    model, batch = load(tmp_path / "m", model_type)
    fast, plain = make_scorer(model, model, batch), Scorer(model, None, None)
    assert fast.head is not None
    assert torch.allclose(fast.token_losses(batch), plain.token_losses(batch), atol=1e-5)
    # The first matrix inside a block: its gradient has passed through everything above it.
    layer = next(item for name, item in model.named_parameters() if item.ndim == 2 and ".0." in name)
    layer.requires_grad_(True)
    gradients = []
    for scorer in (fast, plain):
        loss = scorer.training_loss(batch, len(batch.targets))
        gradients.append(torch.autograd.grad(loss, layer)[0])
    assert torch.allclose(*gradients, atol=1e-5)


def test_padding_does_not_change_the_loss(tmp_path: Path) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "m"))
    rows = [
        CanonicalRow(1, chat("Short?", "yes"), None),
        CanonicalRow(2, chat("A longer question?", "no, not at all"), None),
    ]
    examples = encode(load_tokenizer(base), rows)
    scorer = make_scorer(*[load_base(base, torch.float32, CPU)] * 2, collate(examples, CPU))
    together = scorer.token_losses(collate(examples, CPU))
    alone = torch.cat([scorer.token_losses(collate([example], CPU)) for example in examples])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_model_that_changes_its_logits_takes_the_plain_path(tmp_path: Path) -> None:
    model, batch = load(tmp_path / "m", "llama")
    model.config.final_logit_softcapping = 30.0
    assert plain_head(model) is None
    assert make_scorer(model, model, batch).head is None


def test_an_unproven_model_whose_paths_differ_takes_the_plain_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = load(tmp_path / "m", "mistral")
    real = type(model).forward

    def doubled(self: Any, *arguments: Any, **keywords: Any) -> Any:
        output = real(self, *arguments, **keywords)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(type(model), "forward", doubled)
    assert make_scorer(model, model, batch).head is None


@pytest.mark.parametrize("model_type", sorted(PREFIX_TYPES))
def test_a_shared_prefix_changes_neither_losses_nor_gradients(tmp_path: Path, model_type: str) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "m", model_type=model_type))
    model = load_base(base, torch.float32, CPU)
    system = {"role": "system", "content": "Name the colour of what you are told."}
    chats = [chat("Sky", "blue"), chat("A ripe tomato", "red"), chat("Skin", "it depends")]
    examples = encode(
        load_tokenizer(base), [CanonicalRow(1, [system, *messages], None) for messages in chats]
    )
    whole, parted = collate(examples, CPU), collate(examples, CPU, share_prefix=True)
    assert parted.prefix.shape[1] > 40
    assert parted.tokens == whole.tokens
    scorer = make_scorer(model, model, whole)
    assert scorer.shares_prefix
    layers = [
        item.requires_grad_(True) for name, item in model.named_parameters() if ".0." in name or ".1." in name
    ]
    gradients = []
    for batch in (whole, parted):
        loss = scorer.training_loss(batch, len(batch.targets))
        gradients.append(torch.cat([item.flatten() for item in torch.autograd.grad(loss, layers)]))
    assert torch.allclose(scorer.token_losses(parted), scorer.token_losses(whole), atol=1e-5)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()


def test_a_prefix_ends_before_what_predicts_an_answer(tmp_path: Path) -> None:
    base = tiny_base(build_tiny_model(tmp_path / "m"))
    examples = encode(
        load_tokenizer(base),
        [CanonicalRow(1, chat("Same", "one"), None), CanonicalRow(2, chat("Same", "two"), None)],
    )
    assert shared_prefix(examples) == examples[0].prompt_length - 1
    assert shared_prefix(examples[:1]) == 0
