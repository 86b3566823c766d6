"""Memory and time of a run before it starts, computed from a census and the run's workload.

The formulas describe this engine, whose head runs at learned positions only. A measured factor
(`workers.forecasting.calibration`) corrects what hardware and libraries add.

Units: bytes, seconds, floating-point operations. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from workers.contract.specs import CPU_BATCH_TOKENS, LONG_ROW_PRODUCTS, chunk_rows
from workers.forecasting.workload import Workload
from workers.target_modules.census import Census, Group, Matched

# Changes with every formula: runs estimated by another version are not used for calibration.
FORMULA = 9
PROCESS_BYTES = 480_000_000  # a process that has loaded torch, transformers and PEFT
GPU_PROCESS_BYTES = 60_000_000  # workspaces that torch itself takes on a card
# Allocator fragmentation after training on rows of many lengths.
FRAGMENTATION = {"cpu": 1.4, "cuda": 1.05}
# On a CPU the allocator keeps blocks that gradient checkpointing frees: up to this and half of the saving.
# Without this term memory is 18 % too low on the bundled model.
CHECKPOINTING_FRAGMENTATION_BYTES = 230_000_000
# A CPU's fp32 base is read from a bf16 file of half its size, which counts as the process's own meanwhile.
LOADING_SHARE = 0.5
STATE_BYTES = 16  # per trainable parameter: weight, gradient and AdamW's two moments, all fp32
NF4_BYTES = 0.516  # per parameter: 4 bits and doubly quantised scales (QLoRA, arXiv 2305.14314, section 3)
KEPT_CHECKPOINTS = 3  # two newest and the best
CHECKPOINT_BYTES = 12  # per trainable parameter: weight and two moments
DISK_BYTES_PER_SECOND = 200e6
READ_BYTES_PER_SECOND = 1e9
# Overhead of launching one layer's kernels, forwards and backwards, per micro-batch.
CALL_SECONDS = {"cpu": 4e-3, "cuda": 1e-3}
START_SECONDS = {"cpu": 3.0, "cuda": 12.0}
# Operations per second before the first measured run, by a word of the device's name: per thread of a CPU by
# bytes per number, and per card.
CPU_OPERATIONS = (
    ("AMX", {4: 8e10, 2: 5e11}),
    ("AVX512-BF16", {4: 1e11, 2: 1.6e11}),
    ("", {4: 8e10, 2: 1e11}),
)
GPU_OPERATIONS = (
    ("H200", 4e14),
    ("H100", 4e14),
    ("A100", 1.4e14),
    ("L40", 1.2e14),
    ("4090", 8e13),
    ("", 3e13),
)
ACTIVE_EXPERTS = 8  # of a mixture of experts each token uses a few; families choose 2 to 10


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a base model and of the layers that an adapter sits on."""

    parameters: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    linear_parameters: int  # that every token meets, without the head
    quantizable_parameters: int  # stored in 4 bits: neither experts nor embeddings nor the head
    largest_linear: int  # parameters of the largest quantizable layer
    query_width: int
    key_width: int
    mlp_width: int  # of all experts that a token meets
    has_joint_gate: bool  # gate and up projection in one matrix
    lowest_adapted_layer: int
    matched: tuple[Matched, ...]
    trainable_parameters: int
    r: int

    @property
    def gradient_share(self) -> float:
        """Share of the layers that gradients pass through: none below the lowest adapted layer."""
        return self.adapted_depth / self.num_layers if self.num_layers else 1.0

    @property
    def adapted_depth(self) -> int:
        """Number of layers from the lowest adapted one upwards."""
        return self.num_layers - self.lowest_adapted_layer

    @property
    def adapted_modules(self) -> int:
        """Number of modules that get an adapter."""
        return sum(item.modules for item in self.matched)


def model_shape(census: Census, matched: Iterable[Matched], r: int, trainable: int) -> ModelShape:
    """Return the sizes of a base model with an adapter of rank `r` on the matched layers."""
    matched = tuple(matched)
    inner = [group for group in census.groups if "*" in group.pattern and group.kind != "embedding"]
    widths = {role: _width(inner, role) for role in ("attn_q", "attn_k", "attn_out", "attn_qkv", "mlp_down")}
    queries = widths["attn_out"][0] or widths["attn_q"][1] or census.hidden_size
    keys = widths["attn_k"][1] or max(0, widths["attn_qkv"][1] - queries) // 2 or queries
    quantizable = [group for group in inner if group.kind in ("linear", "conv1d")]
    expert_width = sum(
        group.modules * _active_experts(group) * min(group.d_in, group.d_out)
        for group in inner
        if group.role in ("mlp_down", "expert_down") and group.kind == "expert"
    )
    mlp = widths["mlp_down"][0] or expert_width // max(1, census.num_layers) or 4 * census.hidden_size
    return ModelShape(
        parameters=census.parameters,
        hidden_size=census.hidden_size,
        num_layers=census.num_layers,
        vocab_size=census.vocab_size,
        linear_parameters=sum(
            group.modules * _active_experts(group) * group.d_in * group.d_out for group in inner
        ),
        quantizable_parameters=sum(group.modules * group.d_in * group.d_out for group in quantizable),
        largest_linear=max((group.d_in * group.d_out for group in quantizable), default=0),
        query_width=queries,
        key_width=keys,
        mlp_width=mlp,
        has_joint_gate=any(group.role in ("mlp_gate_up", "expert_gate_up") for group in inner),
        lowest_adapted_layer=min((layer for item in matched for layer in item.layers), default=0),
        matched=matched,
        trainable_parameters=trainable,
        r=r,
    )


def _active_experts(group: Group) -> int:
    return min(group.experts, ACTIVE_EXPERTS)


def _width(groups: Iterable[Group], role: str) -> tuple[int, int]:
    """Return the largest (d_in, d_out) among the layers of one role."""
    return max(((group.d_in, group.d_out) for group in groups if group.role == role), default=(0, 0))


# Memory


@dataclass(frozen=True)
class ComputeOptions:
    """Number formats, device and options that change what a run keeps in memory or computes."""

    dtype_bytes: int = 4  # per number of the base model
    on_cuda: bool = False
    has_dropout: bool = False
    gradient_checkpointing: bool = False
    adapter_dtype_bytes: int = 4  # PEFT keeps adapters in fp32 unless told to use the base's format
    load_in_4bit: bool = False

    @property
    def device_kind(self) -> str:
        """Return `cpu` or `cuda`."""
        return "cuda" if self.on_cuda else "cpu"


def estimate_memory(shape: ModelShape, workload: Workload, options: ComputeOptions) -> dict[str, float]:
    """Return peak bytes by part; their sum is the peak.

    Activations are what autograd keeps of a Llama-like layer per token, counted with hooks on saved tensors:
    the inputs of two norms; queries, keys, values and the attention output; two widths of the MLP.
    """
    width = options.dtype_bytes
    learned = max(workload.rows, workload.learned_tokens / max(1, workload.micro_batches))
    logit_rows = min(chunk_rows(shape.vocab_size, on_cuda=options.on_cuda), learned)
    base = _base_bytes(shape, options)
    loading = 0.0 if options.on_cuda or width < 4 else LOADING_SHARE * base
    return {
        "process": GPU_PROCESS_BYTES if options.on_cuda else PROCESS_BYTES,
        "base": base,
        "adapter": STATE_BYTES * shape.trainable_parameters * options.adapter_dtype_bytes / 4,
        # Small runs need most while the base is loaded.
        "activations": max(_activation_bytes(shape, workload, options), loading),
        "logits": logit_rows * shape.vocab_size * (8 + (0 if width == 4 else width)),
    }


def _activation_bytes(shape: ModelShape, workload: Workload, options: ComputeOptions) -> float:
    width = options.dtype_bytes
    prefix, rows, tokens = workload.shared_prefix, workload.rows, workload.largest_batch
    if not options.on_cuda:
        tokens = _largest_part(workload)
        rows = min(rows, math.ceil(rows * tokens / workload.largest_batch))
    # The engine computes silu(gate) again backwards where the gate is a matrix of its own.
    mlp = (3 if shape.has_joint_gate else 2) * shape.mlp_width
    # In fp32 on a card keys get as many heads as queries; a CPU computes attention of short rows in fp32.
    key_width = shape.query_width if options.on_cuda and width == 4 else shape.key_width
    attention_width = width if options.on_cuda or _has_long_rows(workload) else 4
    attention = attention_width * 2 * (shape.query_width + key_width)
    layer = width * (2 * shape.hidden_size + mlp) + attention
    inputs = _adapter_input_bytes(shape, options)
    kept = tokens * (shape.adapted_depth * layer + inputs)
    if prefix:
        # Each row keeps a copy of the keys and values that it attends to: the prefix and its own.
        copies = 2 * key_width * (tokens + (rows - 1) * prefix)
        kept += shape.adapted_depth * attention_width * copies
    gradients = tokens * layer  # of one layer, beside what is kept
    fragmentation = FRAGMENTATION[options.device_kind]
    whole = (kept + gradients) * fragmentation
    if not options.gradient_checkpointing:
        return whole
    # Each layer keeps its input, and one at a time all that it computes again.
    one_layer = layer + inputs / max(1, shape.adapted_depth)
    inputs_kept = shape.adapted_depth * width * shape.hidden_size
    saved = whole - (tokens * (inputs_kept + one_layer) + gradients) * fragmentation
    return whole - (saved if options.on_cuda else max(saved - CHECKPOINTING_FRAGMENTATION_BYTES, saved / 2))


def _has_long_rows(workload: Workload) -> bool:
    """Return whether the engine computes attention in the base's own format on a CPU."""
    rows = workload.rows * workload.micro_batches
    return 2 * workload.attention_pairs >= LONG_ROW_PRODUCTS * rows


def _largest_part(workload: Workload) -> float:
    """Return the tokens of the largest part of a micro-batch that a CPU computes at a time."""
    most = max(CPU_BATCH_TOKENS + workload.shared_prefix, workload.longest_row)
    parts = math.ceil(workload.largest_batch / most)
    # Where some micro-batches have one part less than others, one part is as large as parts may be.
    return most if _usual_parts(workload) < parts else workload.largest_batch / parts


def _usual_parts(workload: Workload) -> int:
    most = max(CPU_BATCH_TOKENS + workload.shared_prefix, workload.longest_row)
    return math.ceil(workload.computed_tokens / workload.micro_batches / most)


def _base_bytes(shape: ModelShape, options: ComputeOptions) -> float:
    if not options.load_in_4bit:
        return shape.parameters * options.dtype_bytes
    # One layer is unpacked at a time.
    unpacked = shape.parameters - shape.quantizable_parameters + shape.largest_linear
    return unpacked * options.dtype_bytes + shape.quantizable_parameters * NF4_BYTES


def _adapter_input_bytes(shape: ModelShape, options: ComputeOptions) -> float:
    """Return bytes per token that adapted modules keep besides what their layers keep anyway."""
    # The fused layers compute in the base's format; layers in 4 bits are left to PEFT, which casts to fp32.
    width = options.adapter_dtype_bytes if options.load_in_4bit else options.dtype_bytes
    ranks = width * sum(
        item.rank(shape.r) * item.modules * _active_experts(item.group) for item in shape.matched
    )
    all_inputs = sum(item.modules * item.group.d_in for item in shape.matched)
    if options.has_dropout:  # every module keeps a dropped copy of its own, and the mask
        return ranks + 2 * width * all_inputs
    if options.dtype_bytes < width:  # PEFT casts each module's input to fp32
        return ranks + 4 * all_inputs
    # Modules that read the same tensor keep it once.
    shared = {
        (_input_tensor(item.role), layer): width * item.group.d_in
        for item in shape.matched
        if item.role != "attn_out"  # attention keeps its own output anyway
        for layer in item.layers
    }
    return ranks + sum(shared.values())


def _input_tensor(role: str) -> str:
    if role in ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_kv"):
        return "attention"
    return "mlp" if role in ("mlp_gate", "mlp_up", "mlp_gate_up") else role


# Time


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of the parts of a run."""

    training: float
    validation: float
    loading_and_saving: float  # before the first and after the last step, and for checkpoints

    @property
    def computing(self) -> float:
        """Return the seconds that depend on the device's speed."""
        return self.training + self.validation


def count_operations(
    shape: ModelShape, workload: Workload, *, gradient_checkpointing: bool = False
) -> tuple[float, float]:
    """Return the operations of one training step and of all validations.

    N linear parameters and P trainable ones cost 4N + 6P per token: 2N forwards, 2N for gradients through the
    frozen layers above the lowest adapted one, and 6P for the adapter (2N of 6N less than full fine-tuning,
    Kaplan et al., arXiv 2001.08361, section 2.1). Attention adds 4 * layers * width per token and position
    forwards, twice that backwards. Gradient checkpointing repeats the forward pass of the adapted layers.
    """
    backward = shape.gradient_share
    repeated = backward if gradient_checkpointing else 0.0
    per_token = 2 * shape.linear_parameters * (1 + backward + repeated) + 6 * shape.trainable_parameters
    attention = 4 * shape.num_layers * shape.query_width
    head = 2 * shape.vocab_size * shape.hidden_size
    step = workload.computed_tokens * per_token + workload.learned_tokens * 2 * head
    step += workload.attention_pairs * attention * (1 + 2 * backward + repeated)
    validation = workload.validation_tokens * 2 * (shape.linear_parameters + shape.trainable_parameters)
    validation += workload.validation_attention_pairs * attention + workload.validation_learned_tokens * head
    return step, validation


def estimate_time(
    shape: ModelShape, workload: Workload, per_second: float, options: ComputeOptions
) -> TimeEstimate:
    """Return the seconds of a run at `per_second` operations per second."""
    step, validation = count_operations(
        shape, workload, gradient_checkpointing=options.gradient_checkpointing
    )
    parts = 1 if options.on_cuda else _usual_parts(workload)
    calls = workload.micro_batches * parts * (shape.num_layers + shape.adapted_modules / 4)
    checkpoints = min(workload.validations, workload.steps) + 1
    checkpoint_bytes = CHECKPOINT_BYTES * shape.trainable_parameters
    saving = 1.0 + checkpoints * (0.05 + checkpoint_bytes / DISK_BYTES_PER_SECOND)
    return TimeEstimate(
        training=workload.steps * (step / per_second + calls * CALL_SECONDS[options.device_kind]),
        validation=validation / per_second,
        loading_and_saving=load_seconds(shape.parameters, options.device_kind) + saving,
    )


def load_seconds(parameters: int, device_kind: str) -> float:
    """Return the seconds until a new process has loaded the base model."""
    return START_SECONDS[device_kind] + parameters * 4 / READ_BYTES_PER_SECOND


def typical_operations_per_second(device: str, threads: int, dtype_bytes: int) -> float:
    """Return the usual speed of a device on which no run has been measured yet."""
    if device_kind(device) == "cpu":
        return threads * next(speeds for word, speeds in CPU_OPERATIONS if word in device)[dtype_bytes]
    return next(speed for word, speed in GPU_OPERATIONS if word in device)


def usual_dtype(device: str) -> str:
    """Return the number format that a base model usually gets there, as `runtime.pick_dtype` measures it."""
    has_unit = any(word and word in device for word, _ in CPU_OPERATIONS)
    return "bfloat16" if device_kind(device) == "cuda" or has_unit else "float32"


def disk_bytes(trainable: int, adapter: int) -> int:
    """Return the most that a run writes: its checkpoints beside each other, and the adapter."""
    return KEPT_CHECKPOINTS * CHECKPOINT_BYTES * trainable + adapter


def device_kind(device: str) -> str:
    """Return `cpu` or `cuda`."""
    return "cpu" if device.lower().startswith("cpu") else "cuda"


def expected_seconds(forecast: dict[str, Any]) -> float:
    """Return the time that a stored forecast expects; 0 without one."""
    return float((forecast.get("seconds") or {}).get("expected", 0.0))
