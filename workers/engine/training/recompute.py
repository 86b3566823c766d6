"""Gradient checkpointing: each layer keeps only its input and is computed again in the backward pass.

Saves memory and costs time. Rows cannot share a prefix meanwhile: the cache would be filled twice.
"""

from __future__ import annotations

import functools
from typing import Any

from torch.utils.checkpoint import checkpoint


def set_recompute(model: Any, on: bool) -> None:
    """Switch gradient checkpointing for every layer of the model.

    Transformers recomputes only layers in training mode, so the flag is set on the layers alone: their
    submodules stay in evaluation mode, and the base model's own dropout stays off.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    # Not reentrant: the lowest layers need no gradient for their inputs.
    recompute: Any = functools.partial(checkpoint, use_reentrant=False)
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = on
            layer.training = on
            layer._gradient_checkpointing_func = recompute
