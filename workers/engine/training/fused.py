"""Norms of the base model and LoRA layers as one autograd function each: fewer passes over memory.

PEFT and Transformers own modules, parameters and names; only `forward` is replaced. At 700 tokens of the
bundled model on one thread, forward and backward: norm 8.7 ms instead of 19.5 (bfloat16 2.7 instead of 6.0);
an adapted MLP layer 87 instead of 98 (bfloat16 18 instead of 50). A function for silu(gate) * up gained
nothing (19.9 instead of 20.2).
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor


class RmsNorm(torch.autograd.Function):
    """weight * x / rms(x) over the last dimension, computed in fp32; `weight` is frozen. Keeps x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        scale = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        normed: Tensor = (x * scale).to(x.dtype).mul_(weight)
        return normed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        gradient = (grad_outputs[0] * weight).float()
        mean = torch.linalg.vecdot(gradient, normed)[..., None].div_(x.shape[-1])
        return gradient.addcmul_(normed, mean, value=-1).mul_(scale).to(x.dtype), None, None


class LoraDelta(torch.autograd.Function):
    """y + scaling * x A^T B^T, added into y in place.

    y [..., d_out], x [..., d_in], A [r, d_in], B [d_out, r].
    A and B are cast to the format of x for the products; their gradients keep their own format.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        flat = x.flatten(0, -2)
        middle = flat @ a.to(x.dtype).T
        y.view(-1, y.shape[-1]).addmm_(middle, b.to(x.dtype).T, alpha=scaling)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, middle, a, b)
        ctx.scaling = scaling
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, middle, a, b = ctx.saved_tensors
        gradient = grad_outputs[0].flatten(0, -2)
        inner = (gradient @ b.to(x.dtype)).mul_(ctx.scaling)
        grad_x = (inner @ a.to(x.dtype)).view(x.shape) if ctx.needs_input_grad[1] else None
        grad_a = (inner.T @ x.flatten(0, -2)).to(a.dtype)
        grad_b = (gradient.T @ middle).to(b.dtype).mul_(ctx.scaling)
        return grad_outputs[0], grad_x, grad_a, grad_b, None


def fuse(model: Any) -> None:
    """Replace `forward` of the LoRA layers and of the norms of a PEFT model."""
    from peft.tuners.lora.layer import Linear

    is_proven: dict[type, bool] = {}
    for layer in model.modules():
        kind = type(layer)
        if kind is Linear:
            layer.forward = types.MethodType(_lora_forward, layer)
        elif hasattr(layer, "variance_epsilon") and kind.__name__.endswith("RMSNorm"):
            if kind not in is_proven:
                is_proven[kind] = _equals_rms_norm(layer)
            if is_proven[kind]:
                layer.forward = types.MethodType(_norm_forward, layer)


def _norm_forward(layer: Any, hidden_states: Tensor) -> Tensor:
    apply: Any = RmsNorm.apply
    normed: Tensor = apply(hidden_states, layer.weight, layer.variance_epsilon)
    return normed


def _equals_rms_norm(layer: Any) -> bool:
    """Return whether the layer's own forward is `RmsNorm`: families differ, for example by 1 + weight."""
    weight = layer.weight
    x = torch.linspace(-2, 3, 4 * len(weight), dtype=weight.dtype, device=weight.device).view(4, -1)
    results = []
    for forward in (layer, lambda states: _norm_forward(layer, states)):
        states = x.clone().requires_grad_(True)
        with torch.enable_grad():
            value = forward(states)
            # Of one half, because the length of a whole row is constant and has no gradient.
            (gradient,) = torch.autograd.grad(value[:, ::2].square().sum(), states)
        results.append((value.detach(), gradient))
    tolerance = 1e-5 if weight.dtype == torch.float32 else 3e-2
    return all(
        own.dtype == fused.dtype and float((own - fused).norm()) <= tolerance * float(own.norm())
        for own, fused in zip(*results, strict=True)
    )


def _lora_forward(layer: Any, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """Compute a LoRA layer with one plain adapter; leave every other case to PEFT."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    is_plain = len(names) == 1 and names[0] not in layer.lora_variant and not layer.lora_bias[names[0]]
    if not is_plain or layer.disable_adapters or layer.merged or arguments or options:
        output: Tensor = type(layer).forward(layer, x, *arguments, **options)
        return output
    (name,) = names
    y = layer.base_layer(x)
    dropped = layer.lora_dropout[name](x)
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    apply: Any = LoraDelta.apply
    adapted: Tensor = apply(y, dropped, a, b, layer.scaling[name])
    return adapted
