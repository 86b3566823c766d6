"""Cross-entropy at labelled positions only: logits of the other tokens are never computed.

Because the head is frozen, `LabelledLoss` computes the gradient in the forward pass: per chunk one GEMM for
the logits and one for the gradient, and no tensor of vocabulary size outlives its chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.contract.specs import CHUNK_ROWS, PREFIX_TYPES
from workers.engine.base_models.model import plain_head
from workers.engine.training.data import Batch

# Model types whose fast path the tests compare with the plain one; other types are compared at run time.
PROVEN_TYPES = frozenset({"llama", "gpt2", "qwen2", "gpt_neox", "opt"})


class LabelledLoss(torch.autograd.Function):
    """Scalar sum over i of weights[i] * CE(hidden[i] @ head.T, targets[i]).

    hidden [n, d], head [V, d] (frozen), targets [n] int64, weights [n]. With p = softmax(hidden @ head.T) the
    gradient of hidden is weights * (p - onehot(targets)) @ head.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, chunk: int
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = (hidden[rows] @ head.T).float()
            log_total = logits.logsumexp(-1)
            picked = logits.gather(1, targets[rows, None])[:, 0]
            total += ((log_total - picked) * weights[rows]).sum()
            error = (logits - log_total[:, None]).exp_()  # softmax [chunk, V]
            error[torch.arange(len(error), device=error.device), targets[rows]] -= 1
            gradient[rows] = (error * weights[rows, None]).to(hidden.dtype) @ head
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None, None


@dataclass(frozen=True)
class Scorer:
    """Losses of one PEFT or plain model; without a `head` it takes the plain path, the model's own logits.

    `shares_prefix`: tokens with which all rows of a batch begin are computed once, with the same result.
    """

    model: Any
    body: Any
    head: nn.Linear | None
    shares_prefix: bool = False

    def training_loss(self, batch: Batch, labelled: int) -> Tensor:
        """Return the batch's share of the step's mean loss: sum of CE / `labelled` tokens of the step."""
        if self.head is None:
            return self.token_losses(batch).sum() / labelled
        weights = torch.full((len(batch.targets),), 1 / labelled, device=batch.targets.device)
        apply: Any = LabelledLoss.apply
        loss: Tensor = apply(self._hidden(batch), self.head.weight, batch.targets, weights, CHUNK_ROWS)
        return loss

    def token_losses(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of every labelled token, fp32 [n], in the order of `batch.targets`."""
        if self.head is None:
            assert not batch.prefix.shape[1], "the plain path takes whole rows"
            logits = self.model(input_ids=batch.input_ids, use_cache=False).logits
            return functional.cross_entropy(
                logits.flatten(0, 1)[batch.target_positions].float(), batch.targets, reduction="none"
            )
        hidden, head = self._hidden(batch), self.head.weight
        parts = [
            functional.cross_entropy((rows @ head.T).float(), targets, reduction="none")
            for rows, targets in zip(
                torch.split(hidden, CHUNK_ROWS), torch.split(batch.targets, CHUNK_ROWS), strict=True
            )
        ]
        return torch.cat(parts)

    def _hidden(self, batch: Batch) -> Tensor:
        """Return the last hidden states that predict a target, [n, d]."""
        # No mask: padding is on the right, where causal attention never looks from a real token.
        if batch.prefix.shape[1]:
            # The cache keeps its graph, so the rows' gradients flow back through the one prefix, summed.
            past = self.body(input_ids=batch.prefix, use_cache=True).past_key_values
            past.batch_repeat_interleave(len(batch.input_ids))
            states = self.body(
                input_ids=batch.input_ids, past_key_values=past, use_cache=True
            ).last_hidden_state
        else:
            states = self.body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        picked: Tensor = states.flatten(0, 1)[batch.target_positions]
        return picked


def make_scorer(model: Any, causal_lm: Any, first: Batch) -> Scorer:
    """Return the fast path if the head allows it; for other model types only if it equals the plain one."""
    plain = Scorer(model, None, None)
    head = plain_head(causal_lm)
    if head is None:
        return plain
    fast = Scorer(model, causal_lm.base_model, head, causal_lm.config.model_type in PREFIX_TYPES)
    if causal_lm.config.model_type in PROVEN_TYPES:
        return fast
    with torch.no_grad():
        expected, measured = plain.token_losses(first), fast.token_losses(first)
    tolerance = 1e-4 if head.weight.dtype == torch.float32 else 3e-2
    return fast if torch.allclose(expected, measured, rtol=tolerance, atol=tolerance) else plain
