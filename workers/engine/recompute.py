"""Less memory for more time: layers that keep their inputs alone and are computed again in the backward pass.

Rows cannot share a prefix meanwhile, because a cache would be filled twice.
"""

from __future__ import annotations

import functools
from typing import Any

from torch.utils.checkpoint import checkpoint


def set_recompute(model: Any, on: bool) -> None:
    """Switch it for every layer of the model.

    transformers recomputes layers in training mode only, so the layers alone are told that they train: their
    parts stay in evaluation mode, and with them the base model's own dropout stays off.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    # Not reentrant: the lowest layers need no gradient for their inputs.
    again: Any = functools.partial(checkpoint, use_reentrant=False)
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = on
            layer.training = on
            layer._gradient_checkpointing_func = again
