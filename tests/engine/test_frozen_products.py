"""Products with frozen weights, which some CPUs compute with another library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.tiny_model import build_tiny_model, tiny_base
from workers.engine import frozen_products
from workers.engine.base_models.model import load_base
from workers.engine.frozen_products import OneDnnProduct, frozen_product, mkl_is_slow

SHAPES = [(7, 24), (2, 5, 24)]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the products that oneDNN computes, on whatever CPU the test has."""
    shapes: list[torch.Size] = []
    multiply = frozen_products._multiply

    def noted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        shapes.append(weight.shape)
        return multiply(x, weight, bias)

    monkeypatch.setattr(frozen_products, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(frozen_products, "_multiply", noted)
    return shapes


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradient_are_those_of_a_linear_layer(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(5)
    x, weight, bias, toward = (
        draw(*shape),
        draw(40, 24),
        draw(40) if has_bias else None,
        draw(*shape[:-1], 40),
    )
    exact = x.requires_grad_()
    wanted = functional.linear(exact, weight, bias)
    own = x.detach().float().requires_grad_()
    found = OneDnnProduct.apply(own, weight.float(), None if bias is None else bias.float())
    assert found.shape == wanted.shape
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    (wanted_gradient,) = torch.autograd.grad((wanted * toward).sum(), exact)
    (gradient,) = torch.autograd.grad((found * toward.float()).sum(), own)
    assert torch.allclose(gradient.double(), wanted_gradient, atol=1e-5)


def test_states_may_lie_in_any_order_and_be_changed_in_place_afterwards(used: list[torch.Size]) -> None:
    torch.manual_seed(5)
    x, weight = torch.randn(24, 3, 7).transpose(0, 2).requires_grad_(), torch.randn(40, 24)
    found = frozen_product(x, weight).add_(1)
    assert torch.allclose(found, functional.linear(x, weight) + 1, atol=1e-5)
    assert torch.autograd.grad(found.sum(), x)[0].shape == x.shape
    assert used


@pytest.mark.parametrize(
    ("dtype", "is_frozen"), [(torch.bfloat16, True), (torch.float64, True), (torch.float32, False)]
)
def test_other_formats_and_trained_weights_stay_with_torch(
    used: list[torch.Size], dtype: torch.dtype, is_frozen: bool
) -> None:
    x, weight = torch.ones(3, 8, dtype=dtype), torch.ones(4, 8, dtype=dtype, requires_grad=not is_frozen)
    assert frozen_product(x, weight).eq(8).all()
    assert not used


def test_a_loaded_base_model_computes_every_linear_layer_so(used: list[torch.Size], tmp_path: Path) -> None:
    base = load_base(tiny_base(build_tiny_model(tmp_path)), torch.float32, torch.device("cpu"))
    ids = torch.arange(1, 9)[None]
    found = base(input_ids=ids).logits
    linear = [layer for layer in base.modules() if isinstance(layer, torch.nn.Linear)]
    assert used == [layer.weight.shape for layer in linear]
    for layer in linear:
        del layer.forward
    assert torch.allclose(found, base(input_ids=ids).logits, atol=1e-4)
    assert len(used) == len(linear)


@pytest.mark.parametrize(
    ("facts", "capability", "is_slow"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : GenuineIntel", "AVX512", False),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        (None, "AVX512", False),
    ],
)
def test_mkl_is_slow_on_cpus_with_avx512_that_are_not_intels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, facts: str | None, capability: str, is_slow: bool
) -> None:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        pytest.skip("torch without MKL or oneDNN")
    path = tmp_path / "cpuinfo"
    if facts is not None:
        path.write_text(facts)
    monkeypatch.setattr("workers.engine.frozen_products.CPU_FACTS", path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert mkl_is_slow.__wrapped__() == is_slow
