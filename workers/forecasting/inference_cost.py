"""Memory of an inference job before it loads its base model: libraries, weights, tokens and adapters.

The formula follows the engine: `generation/slots.py` keeps keys and values of every layer for a fixed number
of tokens, and `generation/generator.py` computes logits of one token per answer. A base model's file is read
through the page cache, which the kernel takes back when memory is short, so it is not counted.
With 8 answers in 4,096 tokens the bundled model took 1,217 MB in float32 and 884 MB in bfloat16; the formula
says 1,329 and 906.

Units: bytes. Standard library only.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from workers.forecasting.evaluation_cost import STEP_TOKENS
from workers.forecasting.training_cost import GPU_PROCESS_BYTES, PROCESS_BYTES

# Left free for other programs, and for what the formula leaves out, such as fragments of the allocator.
RESERVE_BYTES = 200_000_000
# An inference job with room for fewer tokens would refuse most prompts, so it does not start.
MIN_TOKENS, TOKEN_STEP = 1024, 64
# fp32, and once more where the weights of the adapters in use are laid behind one another.
ADAPTER_BYTES = 2 * 4


@dataclass(frozen=True)
class ServedModel:
    """Sizes of a base model in its number format. `cached_width`: keys and values of all heads of a layer."""

    weights: int
    dtype_bytes: int
    layers: int
    cached_width: int
    hidden_size: int
    mlp_width: int
    vocab_size: int
    max_positions: int = 0  # 0: without a limit
    on_cuda: bool = False

    def memory_bytes(self, max_tokens: int, max_rows: int, adapter_weights: int = 0) -> int:
        """Return the most that an inference job takes with so many tokens and rows at a time.

        weights x width + (layers + 1) x tokens x cached width x width, because a layer's old storage stands
        beside its new one while it grows; the logits of each row, once more in fp32 where they are drawn
        from; one layer's states of the tokens that are read at once, which is a whole prompt for adapters and
        models without a slot; and the adapters.
        """
        width = self.dtype_bytes
        longest = min(max_tokens, self.max_positions or max_tokens)
        read = max(longest, min(max_tokens, STEP_TOKENS) + max_rows)
        return (
            (GPU_PROCESS_BYTES if self.on_cuda else PROCESS_BYTES)
            + self.weights * width
            + (self.layers + 1) * max_tokens * self.cached_width * width
            + max_rows * self.vocab_size * (width + 4)
            + read * (4 * self.hidden_size + 3 * self.mlp_width) * width
            + adapter_weights * ADAPTER_BYTES
        )

    def fitting_tokens(self, room: int, max_tokens: int, max_rows: int) -> int:
        """Return the most tokens, up to `max_tokens`, whose job fits into `room` bytes; 0 if too few do."""
        least = min(MIN_TOKENS, max_tokens)
        budgets = [*range(least, max_tokens, TOKEN_STEP), max_tokens]
        fitting = bisect_right(budgets, room, key=lambda tokens: self.memory_bytes(tokens, max_rows))
        return budgets[fitting - 1] if fitting else 0
