"""Parts of the base model, and LoRA layers, as one autograd function each: fewer passes over memory.

PEFT and Transformers own modules, parameters and names; only `forward` is replaced.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workers.engine.training.packed import Packing, attend_packed, attention_dtype

# Classes with the attention and the decoder layer of Llama, as the tests show.
ATTENTION_TYPES = ("LlamaAttention", "Qwen2Attention")
SILU_TYPES = ("SiLU", "SiLUActivation")
LAYER_TYPES = ("LlamaDecoderLayer", "Qwen2DecoderLayer")


class RmsNorm(torch.autograd.Function):
    """weight * x / rms(x) over the last dimension, in fp32 at least; `weight` is frozen. Keeps x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square_()
        scale = squares.div_(x.shape[-1]).add_(epsilon).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        normed: Tensor = (x * scale).to(x.dtype).mul_(weight)
        return normed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, weight, scale = ctx.saved_tensors
        states, gradient = x.to(scale.dtype), (grad_outputs[0] * weight).to(scale.dtype)
        mean = torch.linalg.vecdot(gradient, states)[..., None].div_(x.shape[-1])
        gradient.mul_(scale).addcmul_(states, mean.mul_(scale.pow(3)), value=-1)
        return gradient.to(x.dtype), None, None


class GatedProduct(torch.autograd.Function):
    """silu(gate) * up. Keeps its two inputs alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        gate, up = ctx.saved_tensors
        grad_up = functional.silu(gate).mul_(grad_outputs[0])
        grad_gate = grad_outputs[0] * up
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate, grad_up


class Rotary(torch.autograd.Function):
    """Rotary position embedding of x [..., T, heads, width]; cos and sin [..., T, 1, width].

    Returns `dtype`; the gradient is that of x, turned back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        low, high = x.chunk(2, -1)
        sin_low, sin_high = sin.chunk(2, -1)
        turned = x.to(dtype) * cos
        to_low, to_high = turned.chunk(2, -1)
        to_low.addcmul_(high, sin_low, value=-1)
        to_high.addcmul_(low, sin_high)
        return turned

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        cos, sin = ctx.saved_tensors
        gradient = grad_outputs[0]
        low, high = gradient.chunk(2, -1)
        sin_low, sin_high = sin.chunk(2, -1)
        turned = gradient * cos
        to_low, to_high = turned.chunk(2, -1)
        to_low.addcmul_(high, sin_high)
        to_high.addcmul_(low, sin_low, value=-1)
        return turned.to(ctx.dtype), None, None, None


class LoraDelta(torch.autograd.Function):
    """y + scaling * x A^T B^T, added into y in place.

    y [..., d_out], x [..., d_in], A [r, d_in], B [d_out, r].
    A and B are cast to the format of x for the products, once; their gradients keep their own format.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        flat, own_a, own_b = x.flatten(0, -2), a.to(x.dtype), b.to(x.dtype)
        middle = flat @ own_a.T
        y.view(-1, y.shape[-1]).addmm_(middle, own_b.T, alpha=scaling)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, middle, own_a, own_b)
        ctx.scaling, ctx.dtypes = scaling, (a.dtype, b.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        x, middle, a, b = ctx.saved_tensors
        gradient = grad_outputs[0].flatten(0, -2)
        inner = (gradient @ b).mul_(ctx.scaling)
        grad_x = (inner @ a).view(x.shape) if ctx.needs_input_grad[1] else None
        dtype_a, dtype_b = ctx.dtypes
        grad_a = (inner.T @ x.flatten(0, -2)).to(dtype_a)
        grad_b = (gradient.T @ middle).to(dtype_b).mul_(ctx.scaling)
        return grad_outputs[0], grad_x, grad_a, grad_b, None


def fuse(model: Any) -> None:
    """Replace `forward` of the LoRA layers of a PEFT model, and of parts of its base model.

    Norms and MLPs are compared with their own forward, because families differ; attention and the last layer
    are replaced where the tests have compared them.
    """
    from peft.tuners.lora.layer import Linear

    is_proven: dict[type, bool] = {}

    def replace(layer: Any, forward: Callable[..., Any], weight: Tensor) -> None:
        kind = type(layer)
        if kind not in is_proven:
            is_proven[kind] = _is_equal(layer, forward, weight)
        if is_proven[kind]:
            layer.forward = types.MethodType(forward, layer)

    last_layer: Any = None
    for layer in model.modules():
        kind = type(layer)
        name = kind.__name__
        if kind is Linear:
            layer.forward = types.MethodType(_lora_forward, layer)
        elif hasattr(layer, "variance_epsilon") and name.endswith("RMSNorm"):
            replace(layer, _norm_forward, layer.weight)
        elif type(getattr(layer, "act_fn", None)).__name__ in SILU_TYPES and hasattr(layer, "gate_proj"):
            replace(layer, _mlp_forward, layer.gate_proj.weight)
        elif name in ATTENTION_TYPES:
            layer.forward = types.MethodType(_attention_forward, layer)
        elif name in LAYER_TYPES:
            last_layer = layer
    if last_layer is not None:
        last_layer.forward = types.MethodType(_last_layer_forward, last_layer)


def _is_equal(layer: Any, forward: Callable[..., Any], weight: Tensor) -> bool:
    """Return whether `forward` equals the layer's own, gradients included; `weight` reads the input."""
    if not weight.is_floating_point():  # in 4 bits
        return False
    width = weight.shape[-1]
    x = torch.linspace(-2, 3, 4 * width, dtype=weight.dtype, device=weight.device).view(1, 4, width)
    results = []
    for compute in (type(layer).forward, forward):
        states = x.clone().requires_grad_(True)
        with torch.enable_grad():
            value = compute(layer, states)
            # Of one half, because the length of a whole row is constant and has no gradient.
            (gradient,) = torch.autograd.grad(value[..., ::2].square().sum(), states)
        results.append((value.detach(), gradient))
    tolerance = 1e-5 if weight.dtype == torch.float32 else 3e-2
    return all(
        own.dtype == fused.dtype and float((own - fused).norm()) <= tolerance * float(own.norm())
        for own, fused in zip(*results, strict=True)
    )


def _norm_forward(layer: Any, hidden_states: Tensor) -> Tensor:
    apply: Any = RmsNorm.apply
    normed: Tensor = apply(hidden_states, layer.weight, layer.variance_epsilon)
    return normed


def _mlp_forward(layer: Any, x: Tensor) -> Tensor:
    apply: Any = GatedProduct.apply
    output: Tensor = layer.down_proj(apply(layer.gate_proj(x), layer.up_proj(x)))
    return output


def _attention_forward(
    layer: Any, hidden_states: Tensor, position_embeddings: Any = None, **options: Any
) -> tuple[Tensor, Any]:
    """Compute the attention of packed rows; leave every other batch to the layer's own forward."""
    packing: Packing | None = options.get("packing")
    if packing is None:
        output: tuple[Tensor, Any] = type(layer).forward(
            layer, hidden_states, position_embeddings=position_embeddings, **options
        )
        return output
    query, key, value = (
        project(hidden_states).unflatten(-1, (-1, layer.head_dim))
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    cos, sin = (angle.unsqueeze(-2) for angle in position_embeddings)
    turn: Any = Rotary.apply
    dtype = attention_dtype(query, packing)
    query, key = turn(query, cos, sin, dtype), turn(key, cos, sin, dtype)
    attended = attend_packed(query, key, value.to(dtype), packing, layer.scaling)
    return layer.o_proj(attended.flatten(2).to(hidden_states.dtype)), None


def _last_layer_forward(layer: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """Compute the MLP of packed rows where a target is predicted alone: the head reads no other position."""
    packing: Packing | None = options.get("packing")
    if packing is None or arguments:
        output: Tensor = type(layer).forward(layer, hidden_states, *arguments, **options)
        return output
    attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **options)
    picked = (hidden_states + attended)[:, packing.target_positions]
    states: Tensor = picked + layer.mlp(layer.post_attention_layernorm(picked))
    return states


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
