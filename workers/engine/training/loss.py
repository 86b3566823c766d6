"""Cross-entropy at labelled positions only: logits of the other tokens are never computed.

Because the head is frozen, `LabelledLoss` computes the gradient in the forward pass: per chunk one GEMM for
the logits and one for the gradient, and no tensor of vocabulary size outlives its chunk.

Token accuracy is the share of labelled tokens that have the highest logit, as TRL's `mean_token_accuracy`.
TRL gives each micro-batch of a step the same weight; here each token has it, as in the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.contract.specs import CPU_BATCH_TOKENS, PREFIX_TYPES, chunk_rows
from workers.engine.base_models.model import plain_head
from workers.engine.frozen_products import frozen_product
from workers.engine.training.data import Batch, cut_batch, pad, shared_prefix
from workers.engine.training.encoding import Example
from workers.engine.training.packed import PACKED, attention, can_pack, pack, register

# Model types whose fast path the tests compare with the plain one; other types are compared at run time.
PROVEN_TYPES = frozenset({"llama", "gpt2", "qwen2", "gpt_neox", "opt"})

# A product in bfloat16 takes 1 to 3 ms longer when oneDNN first meets its shape, so a CPU gets few lengths.
BF16_CPU_MULTIPLE = 16


class LabelledLoss(torch.autograd.Function):
    """Scalar sum over i of weights[i] * CE(hidden[i] @ head.T, targets[i]), and the number of correct tokens.

    hidden [n, d], head [V, d] (frozen), targets [n] int64, weights [n]. With p = softmax(hidden @ head.T) the
    gradient of hidden is weights * (p - onehot(targets)) @ head.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = frozen_product(hidden[rows], head).float()
            (top, predicted), picked = highest(logits), logits.gather(1, targets[rows, None])[:, 0]
            correct += (predicted == targets[rows]).sum()
            # In place, because each pass over a fresh tensor of this size costs a tenth of a product. Not
            # exp(logits - logsumexp): logits may share a large offset, whose rounding would remain.
            error = torch.softmax(logits, -1, out=logits)
            # The largest probability is exp(top - logsumexp).
            total += ((top - error.amax(-1).log() - picked) * weights[rows]).sum()
            error[torch.arange(len(error), device=error.device), targets[rows]] -= 1
            gradient[rows] = frozen_product(error.to(hidden.dtype), head.T).mul_(weights[rows, None])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None, None


def highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest logit of each row and its token, the first of equal ones; `logits` [n, V].

    On a CPU, `amax` reads a row in a fifth of the time of `max`, so the highest block is searched alone.
    """
    width = math.gcd(logits.shape[-1], 256)
    if width < 32:  # where blocks are too short for `amax` to gain anything
        top, token = logits.max(-1)
        return top, token
    blocks = logits.view(-1, logits.shape[-1] // width, width)
    top, block = blocks.amax(-1).max(-1)
    place = blocks[torch.arange(len(blocks), device=logits.device), block].argmax(-1)
    return top, block * width + place


@dataclass(frozen=True)
class Scorer:
    """Losses of one PEFT or plain model; without a `head` it takes the plain path, the model's own logits.

    `is_packed`: rows are computed without padding. `shares_prefix`: tokens with which all rows of a batch
    begin are computed once. Both give the same result.
    """

    model: Any
    body: Any = None
    head: nn.Linear | None = None
    is_packed: bool = False
    shares_prefix: bool = False

    def collate(
        self, examples: Sequence[Example], device: torch.device, *, share_prefix: bool = True
    ) -> Batch:
        """Return the rows in the layout that this scorer reads."""
        if not self.is_packed:
            return pad(examples, device)
        assert self.head is not None
        is_costly = device.type == "cpu" and self.head.weight.dtype == torch.bfloat16
        return pack(
            examples,
            device,
            share_prefix=share_prefix and self.shares_prefix,
            multiple=BF16_CPU_MULTIPLE if is_costly else 1,
        )

    def batches(
        self, micro_batches: Iterable[Sequence[Example]], device: torch.device, *, share_prefix: bool = True
    ) -> Iterator[Batch]:
        """Yield their rows in the layout that this scorer reads; on a CPU only so many at a time as pay."""
        for examples in micro_batches:
            parts: Sequence[Sequence[Example]] = [examples]
            if device.type == "cpu":
                prefix = shared_prefix(examples) if share_prefix and self.shares_prefix else 0
                parts = cut_batch(examples, CPU_BATCH_TOKENS, prefix)
            for part in parts:
                yield self.collate(part, device, share_prefix=share_prefix)

    def training_loss(self, batch: Batch, labelled: int) -> tuple[Tensor, Tensor]:
        """Return the batch's share of the step's mean loss: sum of CE / `labelled` tokens of the step.

        The second value is the number of its tokens that are predicted correctly.
        """
        if self.head is None:
            losses, is_correct = self.token_scores(batch)
            return losses.sum() / labelled, is_correct.sum()
        weights = torch.full((len(batch.targets),), 1 / labelled, device=batch.targets.device)
        apply: Any = LabelledLoss.apply
        loss, correct = apply(self._hidden(batch), self.head.weight, batch.targets, weights, self._chunk)
        return loss, correct

    def token_scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return `token_losses`, and whether each labelled token is predicted correctly."""
        if self.head is None:
            logits = self.model(input_ids=batch.input_ids, use_cache=False).logits
            return _scores(logits.flatten(0, 1)[batch.target_positions].float(), batch.targets)
        hidden, head = self._hidden(batch), self.head.weight
        chunks = zip(torch.split(hidden, self._chunk), torch.split(batch.targets, self._chunk), strict=True)
        parts = [_scores(frozen_product(rows, head).float(), targets) for rows, targets in chunks]
        losses, is_correct = zip(*parts, strict=True)
        return torch.cat(losses), torch.cat(is_correct)

    def token_losses(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of every labelled token, fp32 [n], in the order of `batch.targets`."""
        losses, _is_correct = self.token_scores(batch)
        return losses

    @property
    def _chunk(self) -> int:
        assert self.head is not None
        weight = self.head.weight
        return chunk_rows(len(weight), on_cuda=weight.device.type == "cuda")

    def _hidden(self, batch: Batch) -> Tensor:
        """Return the last hidden states that predict a target, [n, d]."""
        # No mask: padding is on the right, where causal attention never looks from a real token.
        packed = {"position_ids": batch.position_ids, "packing": batch.packing} if batch.packing else {}
        output = self.body(input_ids=batch.input_ids, use_cache=False, **packed)
        states: Tensor = output.last_hidden_state.flatten(0, 1)
        # A fused last layer has returned these alone.
        return states if len(states) == len(batch.targets) else states[batch.target_positions]


def _scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each target, and whether it has the highest logit."""
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return losses, highest(logits.detach())[1] == targets


def make_scorer(model: Any, causal_lm: Any, examples: Sequence[Example], device: torch.device) -> Scorer:
    """Return the fastest scorer that gives the model's own losses: of packed rows, padded rows or its logits.

    Model types that the tests have not proven are compared on `examples`. A packed scorer changes the model's
    attention; `packed.attention` changes it back for a while.
    """
    plain, head, config = Scorer(model), plain_head(causal_lm), causal_lm.config
    if head is None:
        return plain
    padded = Scorer(model, causal_lm.base_model, head)
    shares_prefix = config.model_type in PREFIX_TYPES
    candidates = [(padded, config._attn_implementation)]
    if can_pack(config):
        register()
        packed = replace(padded, is_packed=True, shares_prefix=shares_prefix)
        candidates.insert(0, (packed, PACKED))
    if config.model_type not in PROVEN_TYPES:
        expected = _losses_of_rows(plain, examples, device)
        candidates = [
            (scorer, name)
            for scorer, name in candidates
            if _equals(expected, scorer, examples, device, config, name)
        ]
    scorer, config._attn_implementation = next(iter(candidates), (plain, config._attn_implementation))
    return scorer


@torch.no_grad()
def _losses_of_rows(scorer: Scorer, examples: Sequence[Example], device: torch.device) -> Tensor:
    return scorer.token_losses(scorer.collate(examples, device))


def _equals(
    expected: Tensor,
    scorer: Scorer,
    examples: Sequence[Example],
    device: torch.device,
    config: Any,
    name: str,
) -> bool:
    """Return whether the scorer gives the expected losses under this attention."""
    assert scorer.head is not None
    tolerance = 1e-4 if scorer.head.weight.dtype == torch.float32 else 3e-2
    try:
        with attention(config, name):
            found = _losses_of_rows(scorer, examples, device)
    except (AssertionError, TypeError):  # another attention, or one that takes no further arguments
        return False
    return torch.allclose(expected, found, rtol=tolerance, atol=tolerance)
