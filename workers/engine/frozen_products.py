"""Products with frozen weights, on CPUs that are not Intel's in less than half of the time in fp32.

torch multiplies fp32 matrices with Intel's MKL, which uses AVX-512 on Intel's own CPUs alone. oneDNN, which
torch brings too, uses it on all.
"""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CPU_FACTS = Path("/proc/cpuinfo")  # of Linux


class OneDnnProduct(torch.autograd.Function):
    """x @ weight.T + bias in fp32; x [..., d_in], weight [d_out, d_in], bias [d_out], both frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return _multiply(grad_outputs[0], ctx.weight.T, None), None, None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    product = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    # What is added in place must be no view.
    shaped: Tensor = torch.ops.aten._unsafe_view(product, [*x.shape[:-1], len(weight)])
    return shaped


def frozen_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias; x [..., d_in], weight [d_out, d_in], bias [d_out]."""
    is_fp32_on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if is_fp32_on_cpu and not weight.requires_grad and mkl_is_slow():
        apply: Any = OneDnnProduct.apply
        product: Tensor = apply(x, weight, bias)
        return product
    return functional.linear(x, weight, bias)


@functools.cache
def mkl_is_slow() -> bool:
    """Return whether torch would leave this CPU's AVX-512 unused in fp32, and oneDNN would not."""
    backends: Any = torch.backends
    has_both = backends.mkl.is_available() and backends.mkldnn.is_available()
    if not has_both or backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in CPU_FACTS.read_text()
    except OSError:
        return False


def replace_frozen_products(model: nn.Module) -> None:
    """Let every linear layer of a frozen model compute `frozen_product`."""
    layers: list[Any] = [layer for layer in model.modules() if type(layer) is nn.Linear]
    for layer in layers:
        layer.forward = types.MethodType(_linear_forward, layer)


def _linear_forward(layer: Any, x: Tensor) -> Tensor:
    return frozen_product(x, layer.weight, layer.bias)
