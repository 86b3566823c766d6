"""Adapter sizes against published shapes; tests/engine compares them with saved files."""

from __future__ import annotations

import pytest

from workers.forecasting.adapter_size import adapter_bytes, adapter_params
from workers.target_modules.census import Group, Matched

# (layers, hidden, heads, key-value heads, head size, MLP width), and parameters per rank for each of SETS.
SHAPES = {
    "Qwen2.5-0.5B": ((24, 896, 14, 2, 64, 4864), (43_008, 67_584, 181_248, 549_888)),
    "Llama-3.2-1B": ((16, 2048, 32, 8, 64, 8192), (65_536, 106_496, 229_376, 704_512)),
    "Llama-3.1-8B": ((32, 4096, 32, 8, 128, 14336), (262_144, 425_984, 851_968, 2_621_440)),
    "Gemma-2-2B": ((26, 2304, 8, 4, 256, 9216), (113_152, 199_680, 412_672, 1_297_920)),
}
SETS = ("o", "q v", "o down", "q k v o gate up down")


def groups(shape: tuple[int, ...], names: str) -> tuple[Matched, ...]:
    layers, h, nh, nkv, d, f = shape
    sizes = {
        "q": (h, nh * d),
        "k": (h, nkv * d),
        "v": (h, nkv * d),
        "o": (nh * d, h),
        "gate": (h, f),
        "up": (h, f),
        "down": (f, h),
    }
    every = tuple(range(layers))
    return tuple(
        Matched(Group(f"model.layers.*.{name}_proj", name, "decoder", "linear", every, *sizes[name]), every)
        for name in names.split()
    )


@pytest.mark.parametrize("model", SHAPES)
def test_parameters_per_rank_of_published_models(model: str) -> None:
    shape, expected = SHAPES[model]
    assert tuple(adapter_params(groups(shape, names), 1) for names in SETS) == expected


def test_file_holds_four_bytes_per_parameter_and_a_header() -> None:
    shape, _ = SHAPES["Llama-3.1-8B"]
    size = adapter_bytes(groups(shape, "o"), 16)
    assert 16_777_216 < size < 16_777_216 * 1.01
    assert size % 8 == 0


def test_bfloat16_file_is_half_as_large() -> None:
    shape, _ = SHAPES["Llama-3.1-8B"]
    whole = groups(shape, SETS[3])
    assert adapter_bytes(whole, 16, dtype_bytes=2) == pytest.approx(adapter_bytes(whole, 16) / 2, rel=0.001)
