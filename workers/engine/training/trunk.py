"""Layers below the lowest adapted one, computed once for all arms that read the same batch in a step.

They are frozen and draw nothing at random, so what they return depends on the batch alone. Gradients end at
the lowest adapted layer, so below it nothing is kept for the backward pass.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workers.engine.training.arms import Arm
from workers.engine.training.loss import PROVEN_TYPES


@dataclass(frozen=True)
class LayerOutput:
    """The output of a layer for a batch, and the seconds from the beginning of the forward pass."""

    value: Any
    seconds: float


class SharedTrunk:
    """Replaces `forward` of the base model and its layers if several arms leave the lowest layers frozen."""

    def __init__(self, base: Any, arms: Sequence[Arm]) -> None:
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [layer for layer in base.modules() if isinstance(layer, GradientCheckpointingLayer)]
        # Of other types it is not known whether each layer reads the output of the one before it alone.
        is_proven = base.config.model_type in PROVEN_TYPES
        self.depths = {arm.name: frozen_depth(layers, arm.parameters) if is_proven else 0 for arm in arms}
        self.saved_seconds = 0.0  # that the present turn would have taken longer without the other arms
        self._step, self._depth = -1, 0
        self._outputs: dict[Hashable, dict[int, LayerOutput]] = {}  # of the step, by batch and depth
        self._batch: dict[int, LayerOutput] = {}
        self._reused, self._started = 0, 0.0
        if sum(depth > 0 for depth in self.depths.values()) > 1:
            body = base.base_model
            body.forward = functools.partial(self._forward_body, body.forward)
            for number, layer in enumerate(layers, 1):
                layer.forward = functools.partial(self._forward_layer, number, layer.forward)

    def start_turn(self, arm: Arm, step: int) -> None:
        """Let this arm use what others have computed in this step, and keep what it computes for them."""
        if step != self._step:
            self._outputs.clear()
        self._step, self._depth, self.saved_seconds = step, self.depths[arm.name], 0.0

    def _forward_body(self, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        if not self._depth:
            return forward(*inputs, **options)
        ids = options["input_ids"]
        key = (ids.shape, ids.cpu().numpy().tobytes(), options.get("packing"))
        self._batch = self._outputs.setdefault(key, {})
        self._reused = max((depth for depth in self._batch if depth <= self._depth), default=0)
        saved = self._batch[self._reused].seconds if self._reused else 0.0
        self.saved_seconds += saved
        self._started = time.monotonic() - saved
        try:
            return forward(*inputs, **options)
        finally:
            self._batch, self._reused = {}, 0

    def _forward_layer(self, number: int, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        if number <= self._reused:
            return self._batch[self._reused].value
        output = forward(*inputs, **options)
        if number <= self._depth and number in self.depths.values():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._batch[number] = LayerOutput(output, time.monotonic() - self._started)
        return output


def frozen_depth(layers: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> int:
    """Return the number of layers below the lowest adapted one; 0 if anything but layers is adapted."""
    adapted = {id(parameter) for parameter in parameters}
    numbers = [
        number
        for number, layer in enumerate(layers)
        for parameter in layer.parameters()
        if id(parameter) in adapted
    ]
    return min(numbers) if len(numbers) == len(adapted) else 0
