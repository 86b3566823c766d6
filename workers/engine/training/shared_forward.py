"""Arms that read the same rows share one forward and backward pass.

Layers below the lowest adapted one are frozen and draw nothing at random: they compute the batch once, and no
gradient passes them. From there on each arm has its own copy of the hidden states, [arms, T, d], to which
`fused` adds the arm's own low-rank part. An arm's numbers equal those of training alone up to rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workers.contract.specs import shared_pass_tokens
from workers.engine.training import lora
from workers.engine.training.arms import Arm
from workers.engine.training.encoding import Example
from workers.engine.training.loss import PROVEN_TYPES, Scorer

# Such steps are computed arm by arm: they measure what an arm takes alone.
FIRST_ALONE, ALONE_EVERY = 2, 20

MicroBatches = list[list[Example]]


class SharedForward:
    """Chooses the arms of each pass, and gives the model as many copies of a batch as it has arms."""

    def __init__(
        self, model: Any, base: Any, arms: Sequence[Arm], scorer: Scorer, device: torch.device
    ) -> None:
        from peft.tuners.lora.layer import Linear, LoraLayer
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._model, self._arms, self._scorer, self._device = model, arms, scorer, device
        self._modules = list(model.modules())
        layers = [layer for layer in base.modules() if isinstance(layer, GradientCheckpointingLayer)]
        # Of other types it is not known whether each layer reads the output of the one before it alone.
        is_proven = scorer.is_packed and base.config.model_type in PROVEN_TYPES
        is_fused = all(type(layer) is Linear for layer in self._modules if isinstance(layer, LoraLayer))
        self.depths = {
            arm.name: frozen_depth(layers, arm.parameters) if is_proven and is_fused else None for arm in arms
        }
        self._copies, self._depth, self._layers = 1, 0, len(layers)
        for depth in {depth for depth in self.depths.values() if depth is not None}:
            layers[depth].register_forward_pre_hook(functools.partial(self._copy, depth))

    def training_passes(self, step: int) -> Iterator[tuple[list[Arm], MicroBatches]]:
        """Yield the arms that train in this step, by the rows that they read, and these rows."""
        is_measured = step <= FIRST_ALONE or step % ALONE_EVERY == 0

        def rows_read(arm: Arm) -> Hashable:
            learn = arm.spec.hyperparameters
            if is_measured or learn.lora_dropout:
                return None
            order = (learn.seed, learn.rows_per_step, learn.per_device_train_batch_size, len(arm.positions))
            return (self.depths[arm.name], *order, learn.max_length, learn.gradient_checkpointing)

        waiting = [arm for arm in self._arms if arm.has_turn(step) and arm.step < step]
        yield from self._passes(waiting, rows_read, lambda arm: arm.step_examples(step))

    def validation_passes(self, step: int) -> Iterator[tuple[list[Arm], MicroBatches]]:
        """Yield the arms to validate after this step, by the rows that they read, and these rows."""

        def rows_read(arm: Arm) -> Hashable:
            learn = arm.spec.hyperparameters
            count = len(arm.validation_examples)
            return (self.depths[arm.name], count, learn.per_device_train_batch_size, learn.max_length)

        waiting = [arm for arm in self._arms if arm.has_turn(step) and arm.is_validation_due(step)]
        yield from self._passes(waiting, rows_read, Arm.validation_batches)

    def start(self, arms: Sequence[Arm]) -> None:
        """Let the model compute one copy of the following batches for each of these arms."""
        self._copies, self._depth = len(arms), self.depths[arms[0].name] or 0
        if len(self._arms) > 1:
            lora.activate(self._model, self._modules, [arm.name for arm in arms])

    def _passes(
        self,
        arms: Sequence[Arm],
        rows_read: Callable[[Arm], Hashable],
        read: Callable[[Arm], MicroBatches],
    ) -> Iterator[tuple[list[Arm], MicroBatches]]:
        by_rows: dict[Hashable, list[Arm]] = {}
        for arm in arms:
            is_shared = self.depths[arm.name] is not None
            by_rows.setdefault((is_shared and rows_read(arm)) or arm.name, []).append(arm)
        for readers in by_rows.values():
            batches = read(readers[0])
            passes = math.ceil(len(readers) / self._most_copies(readers, batches))
            size = math.ceil(len(readers) / passes)
            for start in range(0, len(readers), size):
                yield readers[start : start + size], batches

    def _most_copies(self, readers: Sequence[Arm], batches: MicroBatches) -> int:
        """Return how many copies of these rows one pass may have."""
        if len(readers) == 1:
            return 1
        adapted = self._layers - (self.depths[readers[0].name] or 0)
        tokens = self._scorer.largest_part(batches, self._device)
        return max(1, shared_pass_tokens(self._layers, adapted) // tokens)

    def _copy(self, depth: int, _layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._copies == 1 or depth != self._depth:
            return None
        states: Tensor = inputs[0]
        return states.expand(self._copies, -1, -1), *inputs[1:]


def frozen_depth(layers: Sequence[nn.Module], parameters: Sequence[nn.Parameter]) -> int | None:
    """Return the number of layers below the lowest adapted one; None if anything but layers is adapted."""
    adapted = {id(parameter) for parameter in parameters}
    numbers = [
        number
        for number, layer in enumerate(layers)
        for parameter in layer.parameters()
        if id(parameter) in adapted
    ]
    return min(numbers) if len(numbers) == len(adapted) else None
