"""Estimated bytes and seconds against worked examples; activations were counted with saved-tensor hooks."""

from __future__ import annotations

import dataclasses

import pytest

from workers.forecasting import training_cost
from workers.forecasting.training_cost import (
    ComputeOptions,
    ModelShape,
    count_operations,
    estimate_memory,
    estimate_time,
    model_shape,
)
from workers.forecasting.workload import Workload
from workers.target_modules.census import Census, Group, Matched

# h 512, f 1792, 8 heads and 2 key-value heads of 64: the layer whose bytes were counted.
WIDTHS = {
    "q": ("attn_q", 512, 512),
    "k": ("attn_k", 512, 128),
    "v": ("attn_v", 512, 128),
    "o": ("attn_out", 512, 512),
    "gate": ("mlp_gate", 512, 1792),
    "up": ("mlp_up", 512, 1792),
    "down": ("mlp_down", 1792, 512),
}
# Bytes per token and layer: bf16 base with fp32 adapters, fp32 with fp32, bf16 with dropout; r 16.
COUNTED = {
    "o": (11_848, 23_656, 13_896),
    "q v": (12_904, 25_768, 15_976),
    "q k v o": (12_968, 25_896, 20_136),
    "gate up down": (16_520, 33_000, 23_176),
    "q k v o gate up down": (17_672, 35_304, 31_496),
}


def group(name: str, layers: int = 1) -> Group:
    role, d_in, d_out = WIDTHS[name]
    return Group(f"model.layers.*.{name}_proj", role, "decoder", "linear", tuple(range(layers)), d_in, d_out)


def sizes(names: str, r: int = 16, lowest: int = 0, layers: int = 1) -> ModelShape:
    census = Census(
        model_type="llama",
        parameters=100_000_000,
        hidden_size=512,
        num_layers=layers,
        max_positions=4096,
        vocab_size=32_000,
        groups=tuple(group(name, layers) for name in WIDTHS),
    )
    adapted = [Matched(group(name, layers), tuple(range(lowest, layers))) for name in names.split()]
    return model_shape(census, adapted, r, sum(one.params(r) for one in adapted))


ONE_TOKEN = Workload(
    steps=10, micro_batches=1, rows=1, longest_row=1.0, largest_batch=1.0, shared_prefix=0,
    computed_tokens=1.0, attention_pairs=0.0, learned_tokens=0.0, total_tokens=10.0, validation_tokens=0.0,
    validation_attention_pairs=0.0, validation_learned_tokens=0.0, validations=0,
)  # fmt: skip


def kept(names: str, dtype_bytes: int, *, drops: bool = False, adapter_bytes: int = 4) -> float:
    """Return the bytes that autograd keeps per token and layer, without fragmentation and gradients."""
    of = sizes(names)
    found = estimate_memory(
        of,
        ONE_TOKEN,
        ComputeOptions(dtype_bytes, on_cuda=True, has_dropout=drops, adapter_dtype_bytes=adapter_bytes),
    )["activations"]
    layer = dtype_bytes * (2 * 512 + 2 * (512 + (512 if dtype_bytes == 4 else 128)) + 2 * 1792)
    return found / training_cost.FRAGMENTATION["cuda"] - layer


def test_fused_layers_keep_adapter_inputs_in_the_bases_format() -> None:
    assert kept("o", 2, adapter_bytes=2) == kept("o", 2, adapter_bytes=4)


@pytest.mark.parametrize("names", COUNTED)
def test_activations_equal_the_counted_bytes(names: str) -> None:
    half, whole, dropped = COUNTED[names]
    # A layer's scores of attention, 4 bytes per head and 8 more, are left out of the sums.
    assert kept(names, 2) == pytest.approx(half, rel=0.005)
    # In fp32 a card widens keys and values to the width of the queries.
    assert kept(names, 4) == pytest.approx(whole + 4 * 2 * (512 - 128), rel=0.005)
    assert kept(names, 2, drops=True) == pytest.approx(dropped, rel=0.005)


def test_gradient_checkpointing_keeps_only_layer_inputs() -> None:
    of = sizes("q k v o gate up down", layers=8)
    many = dataclasses.replace(ONE_TOKEN, largest_batch=1000.0, computed_tokens=1000.0)
    again = ComputeOptions(2, on_cuda=True, gradient_checkpointing=True)
    kept_twice = estimate_memory(of, many, again)["activations"] / training_cost.FRAGMENTATION["cuda"]
    layer = 2 * (2 * 512 + 2 * (512 + 128) + 2 * 1792)
    # 2h bytes per token and layer, one layer in full and the gradients of one.
    assert kept_twice == pytest.approx(1000 * (8 * 2 * 512 + 17_672 + layer), rel=0.01)
    once, twice = (count_operations(of, many, gradient_checkpointing=on)[0] for on in (False, True))
    assert twice - once == pytest.approx(2 * of.linear_parameters * 1000)


def test_attention_of_long_rows_takes_half_the_memory_in_bfloat16_on_a_cpu() -> None:
    short, long = (
        dataclasses.replace(ONE_TOKEN, largest_batch=1000.0, attention_pairs=pairs) for pairs in (1.0, 1e6)
    )

    def saved(options: ComputeOptions) -> float:
        few, many = (estimate_memory(sizes("o"), load, options)["activations"] for load in (short, long))
        return few - many

    assert saved(ComputeOptions(2)) > 0
    assert saved(ComputeOptions(4)) == saved(ComputeOptions(2, on_cuda=True)) == 0


def test_cpu_keeps_some_freed_memory_with_checkpointing() -> None:
    # With as many key heads as query heads, so that both devices keep the same.
    of = dataclasses.replace(sizes("q k v o gate up down", layers=8), key_width=512)
    many = dataclasses.replace(
        ONE_TOKEN, longest_row=20_000.0, largest_batch=20_000.0, computed_tokens=20_000.0
    )
    found = {
        (on_cuda, again): estimate_memory(
            of, many, ComputeOptions(on_cuda=on_cuda, gradient_checkpointing=again)
        )["activations"]
        for on_cuda in (False, True)
        for again in (False, True)
    }
    ratio = training_cost.FRAGMENTATION["cpu"] / training_cost.FRAGMENTATION["cuda"]
    assert found[False, False] == pytest.approx(ratio * found[True, False])
    kept = training_cost.CHECKPOINTING_FRAGMENTATION_BYTES
    assert found[False, True] == pytest.approx(ratio * found[True, True] + kept)


@pytest.mark.parametrize(
    ("usual", "largest", "kept"),
    [
        (1000, 1500, 1500),
        (2048, 2048, 1024),  # two parts each
        (1000, 2048, 1536),  # a micro-batch of 1,536 tokens is one part
    ],
)
def test_cpu_keeps_a_part_of_a_large_batch(usual: float, largest: float, kept: float) -> None:
    of = sizes("o", layers=8)
    batch = dataclasses.replace(ONE_TOKEN, rows=8, longest_row=256.0)
    many = dataclasses.replace(batch, largest_batch=largest, computed_tokens=usual)
    part = dataclasses.replace(batch, largest_batch=kept, computed_tokens=kept)
    found, expected = (estimate_memory(of, one, ComputeOptions())["activations"] for one in (many, part))
    assert found == pytest.approx(expected)
    on_cuda = [estimate_memory(of, one, ComputeOptions(on_cuda=True))["activations"] for one in (many, part)]
    assert on_cuda[0] / on_cuda[1] == pytest.approx(largest / kept)


def test_small_run_peaks_while_loading() -> None:
    of = sizes("o")
    assert estimate_memory(of, ONE_TOKEN, ComputeOptions())["activations"] == 200_000_000
    assert estimate_memory(of, ONE_TOKEN, ComputeOptions(on_cuda=True))["activations"] < 1_000_000


def test_bytes_per_parameter_of_base_and_adapter() -> None:
    of = sizes("o")
    found = estimate_memory(of, ONE_TOKEN, ComputeOptions())
    assert (found["base"], found["adapter"]) == (400_000_000, 16 * 16 * 1024)
    assert estimate_memory(of, ONE_TOKEN, ComputeOptions(2))["base"] == 200_000_000


def test_layers_below_the_lowest_adapted_one_keep_no_activations() -> None:
    low, high = sizes("o", layers=8), sizes("o", layers=8, lowest=6)
    many = dataclasses.replace(ONE_TOKEN, largest_batch=1000.0)
    whole = estimate_memory(low, many, ComputeOptions(on_cuda=True))["activations"]
    assert estimate_memory(high, many, ComputeOptions(on_cuda=True))["activations"] == pytest.approx(
        whole * 3 / 9, rel=0.01
    )
    assert high.gradient_share == 0.25


def test_logits_are_bounded_by_the_chunk() -> None:
    few = dataclasses.replace(ONE_TOKEN, learned_tokens=10.0)
    many = dataclasses.replace(ONE_TOKEN, learned_tokens=10_000.0)
    found = [
        estimate_memory(sizes("o"), load, ComputeOptions(on_cuda=True))["logits"] for load in (few, many)
    ]
    assert found == [10 * 32_000 * 8, 256 * 32_000 * 8]


def test_operations_of_a_step() -> None:
    of = sizes("q k v o gate up down")
    step, validation = count_operations(of, ONE_TOKEN)
    assert of.linear_parameters == 512 * (512 + 128 + 128 + 512) + 3 * 512 * 1792
    assert step == pytest.approx(4 * of.linear_parameters + 6 * of.trainable_parameters)
    assert validation == 0


def test_layers_without_gradient_save_operations() -> None:
    load = dataclasses.replace(ONE_TOKEN, computed_tokens=2000.0)
    whole, upper = (count_operations(sizes("o", layers=8, lowest=low), load)[0] for low in (0, 6))
    every = count_operations(sizes("q k v o gate up down", layers=8), load)[0]
    assert upper / whole == pytest.approx(2.5 / 4, rel=0.05)
    assert every / whole < 1.2  # of a model as small as this; far less of a large one


def test_device_speed_changes_only_computing_time() -> None:
    load = dataclasses.replace(ONE_TOKEN, computed_tokens=2000.0, validation_tokens=500.0, validations=11)
    found = estimate_time(sizes("o"), load, 1e10, ComputeOptions())
    slow = estimate_time(sizes("o"), load, 5e9, ComputeOptions())
    assert slow.validation == pytest.approx(2 * found.validation)
    assert slow.loading_and_saving == found.loading_and_saving


def test_typical_speed_of_unmeasured_devices() -> None:
    guess = training_cost.typical_operations_per_second
    assert (
        guess("NVIDIA H100 80GB HBM3", 1, 2) > guess("NVIDIA A100-SXM4-40GB", 1, 2) > guess("Tesla T4", 1, 2)
    )
    assert guess("CPU, 8 cores (x86_64)", 7, 4) == 7 * guess("cpu", 1, 4)
    units = [guess(f"CPU, 8 cores{unit} (x86_64)", 1, 2) for unit in (" with AMX", " with AVX512-BF16", "")]
    assert units[0] > units[1] > units[2]


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16"),
        ("CPU, 8 cores with AMX (x86_64)", "bfloat16"),
        ("CPU, 8 cores with AVX512-BF16 (x86_64)", "bfloat16"),
        ("CPU, 8 cores (x86_64)", "float32"),
        ("cpu", "float32"),
    ],
)
def test_number_format_of_unmeasured_devices(device: str, dtype: str) -> None:
    assert training_cost.usual_dtype(device) == dtype


def test_disk_bytes() -> None:
    assert training_cost.disk_bytes(1000, 4000) == 3 * 12 * 1000 + 4000


# Llama-3.1-8B: 32 layers of seven linear ones, 6,979,321,856 numbers in all; 8,030,261,248 with the rest.
LLAMA = {
    "q": (4096, 4096),
    "k": (4096, 1024),
    "v": (4096, 1024),
    "o": (4096, 4096),
    "gate": (4096, 14336),
    "up": (4096, 14336),
    "down": (14336, 4096),
}


def test_4_bit_base_of_llama_8b() -> None:
    layers = tuple(range(32))
    groups = tuple(
        Group(f"model.layers.*.{name}_proj", WIDTHS[name][0], "decoder", "linear", layers, *sides)
        for name, sides in LLAMA.items()
    )
    census = Census(
        model_type="llama",
        parameters=8_030_261_248,
        hidden_size=4096,
        num_layers=32,
        max_positions=8192,
        vocab_size=128_256,
        groups=groups,
    )
    eight_b = model_shape(census, [Matched(groups[3], layers)], 16, 4_194_304)
    assert eight_b.quantizable_parameters == 6_979_321_856
    found = {
        in_4bit: estimate_memory(
            eight_b, ONE_TOKEN, ComputeOptions(dtype_bytes=2, on_cuda=True, load_in_4bit=in_4bit)
        )
        for in_4bit in (False, True)
    }
    assert found[False]["base"] == pytest.approx(16.06e9, rel=1e-3)
    one_unpacked = 2 * 4096 * 14336
    assert found[True]["base"] - one_unpacked == pytest.approx(5.70e9, rel=1e-3)
    # PEFT casts the inputs of layers in 4 bits to fp32.
    assert found[True]["activations"] > found[False]["activations"]


def test_experts_are_not_quantized() -> None:
    layers = tuple(range(2))
    groups = (
        Group("model.layers.*.self_attn.o_proj", "attn_out", "decoder", "linear", layers, 64, 64),
        Group("model.layers.*.mlp.experts.down_proj", "expert_down", "decoder", "expert", layers, 32, 64, 8),
    )
    census = Census(
        model_type="mixtral",
        parameters=50_000,
        hidden_size=64,
        num_layers=2,
        max_positions=64,
        vocab_size=100,
        groups=groups,
    )
    assert model_shape(census, [Matched(groups[0], layers)], 4, 1024).quantizable_parameters == 2 * 64 * 64
