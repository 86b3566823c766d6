"""Memory and time of a run before it starts, by arithmetic over a census and the run's workload.

The sums describe this engine: the head runs at learned positions only, and nothing is computed twice. What
hardware and libraries add is learned by `workers.calibration` from runs that have ended. Standard library
only; bytes, seconds and floating-point operations, no rows and no tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.census import Census, Group, Matched
from workers.workload import Workload

# Changes whenever a formula does: runs forecast by other sums teach these nothing.
FORMULA = 3
CHUNK_ROWS = 256  # learned positions whose logits exist at one time
PROCESS_BYTES = 480_000_000  # a process that has loaded torch, transformers and PEFT
GPU_PROCESS_BYTES = 60_000_000  # workspaces that torch itself takes on a card
# What a process holds in its allocator's holes once it has trained on rows of many lengths. On a CPU fewer
# where dropout keeps many tensors of one size, and more by a sum, never by more than half of what is saved,
# where layers free what they compute again.
HOLES = {"cpu": 1.4, "cuda": 1.05}
DROPOUT_HOLES = 1.22
RECOMPUTE_HOLES_BYTES = 230_000_000
# A CPU's copy in fp32 is filled from a file of half its size, which counts as the process's own meanwhile.
LOADING = 0.5
STATE_BYTES = 16  # per trainable parameter: weight, gradient and AdamW's two moments, all fp32
# NF4, double quantisation: half a byte, and scales for 64 numbers and for 256 scales (arXiv 2305.14314).
PACKED_BYTES = 0.516
KEPT_CHECKPOINTS = 3  # two newest and the best
CHECKPOINT_BYTES = 12  # per trainable parameter: weight and two moments
DISK_BYTES_PER_SECOND = 200e6
# Attention reaches this part of a matrix product's speed: softmax and short rows.
ATTENTION_SPEED = 0.35
# So do the narrow products of an adapter; and forward passes alone are quicker than the average of a step.
ADAPTER_SPEED = 0.5
FORWARD_SPEED = 1.25
# Products are so narrow that they take the time of a rank higher by this.
RANK_FLOOR = 32
# A second forward pass within a step was seen to cost a quarter of the step, half of what its operations say.
AGAIN_SPEED = 2.0
CALL_SECONDS = {"cpu": 4e-3, "cuda": 1e-3}  # per layer and micro-batch, forwards and backwards
START_SECONDS = {"cpu": 3.0, "cuda": 12.0}
# Operations per second before anything is known: per thread of a CPU, and per card by a word of its name.
CPU_OPERATIONS = {4: 8e10, 2: 1e11}
GPU_OPERATIONS = (
    ("H200", 4e14),
    ("H100", 4e14),
    ("A100", 1.4e14),
    ("L40", 1.2e14),
    ("4090", 8e13),
    ("", 3e13),
)


@dataclass(frozen=True)
class ModelShape:
    """What the sums need of a base model and of the layers that an adapter sits on."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    body: int  # linear parameters that every token meets, without the head
    packed: int  # linear parameters that a base in 4 bits packs: neither experts nor embeddings nor the head
    largest: int  # of the layers that hold these
    attention: int  # width of the queries
    keys: int  # width of the keys
    mlp: int  # width of the MLP, all that a token meets
    gated: bool
    lowest: int  # the first layer that is adapted
    adapted: tuple[Matched, ...]
    trainable: int
    rank: int

    @property
    def share(self) -> float:
        """The part of the layers that gradients pass through: nothing below the lowest adapted one."""
        return (self.layers - self.lowest) / self.layers if self.layers else 1.0


ACTIVE_EXPERTS = 8  # of a mixture of experts each token meets a few; families choose 2 to 10


def model_shape(census: Census, adapted: Iterable[Matched], r: int, trainable: int) -> ModelShape:
    """From the census of the base model and the layers that get an adapter, in a run of rank `r`."""
    chosen = tuple(adapted)
    inner = [group for group in census.groups if "*" in group.pattern and group.kind != "embedding"]
    widths = {role: _width(inner, role) for role in ("attn_q", "attn_k", "attn_out", "attn_qkv", "mlp_down")}
    attention = widths["attn_out"][0] or widths["attn_q"][1] or census.hidden_size
    keys = widths["attn_k"][1] or max(0, widths["attn_qkv"][1] - attention) // 2 or attention
    downs = [group for group in inner if group.role in ("mlp_down", "expert_down")]
    packable = [group for group in inner if group.kind in ("linear", "conv1d")]
    per_layer = sum(
        group.modules * _active(group) * min(_sides(group)) for group in downs if group.kind == "expert"
    )
    mlp = widths["mlp_down"][0] or per_layer // max(1, census.num_layers) or 4 * census.hidden_size
    return ModelShape(
        parameters=census.parameters,
        hidden=census.hidden_size,
        layers=census.num_layers,
        vocabulary=census.vocab_size,
        packed=sum(group.modules * group.d_in * group.d_out for group in packable),
        largest=max((group.d_in * group.d_out for group in packable), default=0),
        body=sum(group.modules * _active(group) * group.d_in * group.d_out for group in inner),
        attention=attention,
        keys=keys,
        mlp=mlp,
        gated=any(group.role in ("mlp_gate", "mlp_gate_up", "expert_gate_up") for group in inner),
        lowest=min((layer for one in chosen for layer in one.layers), default=0),
        adapted=chosen,
        trainable=trainable,
        rank=r,
    )


def _active(group: Group) -> int:
    return min(group.experts, ACTIVE_EXPERTS)


def _sides(group: Group) -> tuple[int, int]:
    return group.d_in, group.d_out


def _width(groups: Iterable[Group], role: str) -> tuple[int, int]:
    """The largest (d_in, d_out) among the layers of one role."""
    return max(((group.d_in, group.d_out) for group in groups if group.role == role), default=(0, 0))


# Memory


@dataclass(frozen=True)
class ComputeOptions:
    """In which way a run is computed: bytes per number of the base, dropout, layers computed twice."""

    dtype_bytes: int = 4
    on_cuda: bool = False
    drops: bool = False
    recomputes: bool = False
    adapter_bytes: int = 4  # per number of the adapter: PEFT's fp32, or the base's own format
    in_4bit: bool = False  # the base's linear layers, computed in `dtype_bytes`

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return "cuda" if self.on_cuda else "cpu"


def estimate_memory(shape: ModelShape, workload: Workload, options: ComputeOptions) -> dict[str, float]:
    """Peak bytes by part; their sum is the peak.

    Activations are what autograd keeps of a Llama-like layer per token, counted with hooks on saved tensors:
    8h for two norms in fp32; queries, keys, values and attention's answer; three widths of the MLP.
    """
    width = options.dtype_bytes
    tokens = workload.rows * (workload.longest - workload.prefix) + workload.prefix
    kept = shape.layers - shape.lowest
    layer = 8 * shape.hidden + width * (2 * (shape.attention + shape.keys) + _mlp_widths(shape) * shape.mlp)
    inputs = _adapter_inputs(shape, options)
    activations = tokens * (kept * layer + inputs)
    at_once = tokens * layer  # one layer's gradients live beside what is kept
    if workload.prefix:
        # Keys and values of the shared part are copied for each row, and repeated to the queries' width.
        wide = 2 * shape.attention * workload.longest - 2 * shape.keys * (workload.longest - workload.prefix)
        activations += kept * workload.rows * width * max(0.0, wide)
    held = (activations + at_once) * _holes(options)
    if options.recomputes:  # each layer keeps its input, and one at a time all that it computes again
        again = tokens * (kept * width * shape.hidden + layer + inputs / max(1, kept)) + at_once
        saved = held - again * _holes(options)
        held -= saved if options.on_cuda else max(saved - RECOMPUTE_HOLES_BYTES, saved / 2)
    rows = min(
        CHUNK_ROWS, workload.rows * max(1.0, workload.learned / max(1, workload.rows * workload.batches))
    )
    logits = rows * shape.vocabulary * (8 + (0 if width == 4 else width))
    return {
        "process": GPU_PROCESS_BYTES if options.on_cuda else PROCESS_BYTES,
        "base": _base(shape, options),
        "adapter": STATE_BYTES * shape.trainable * options.adapter_bytes / 4,
        # Small runs need most while the base is loaded.
        "activations": max(held, _loading(shape, options)),
        "logits": logits,
    }


def _holes(options: ComputeOptions) -> float:
    if options.on_cuda or not options.drops or options.recomputes:
        return HOLES[options.kind]
    return DROPOUT_HOLES


def _loading(shape: ModelShape, options: ComputeOptions) -> float:
    return 0.0 if options.on_cuda or options.dtype_bytes < 4 else LOADING * _base(shape, options)


def _base(shape: ModelShape, options: ComputeOptions) -> float:
    if not options.in_4bit:
        return shape.parameters * options.dtype_bytes
    # One layer is unpacked at a time.
    whole = (shape.parameters - shape.packed + shape.largest) * options.dtype_bytes
    return whole + shape.packed * PACKED_BYTES


def _mlp_widths(shape: ModelShape) -> int:
    return 3 if shape.gated else 2


def _adapter_inputs(shape: ModelShape, options: ComputeOptions) -> float:
    """Bytes per token that the adapted modules keep besides what their layers keep anyway."""
    width = options.adapter_bytes
    inner = width * sum(one.rank(shape.rank) * one.modules * _active(one.group) for one in shape.adapted)
    if options.drops:  # every module has a dropped copy of its own, and the mask
        return inner + 2 * width * sum(one.modules * one.group.d_in for one in shape.adapted)
    if options.dtype_bytes < width:  # PEFT casts each module's input to fp32
        return inner + 4 * sum(one.modules * one.group.d_in for one in shape.adapted)
    shared: dict[tuple[str, int], int] = {}
    for one in shape.adapted:
        family = _input_of(one.role)
        if family != "attention's answer":
            for layer in one.layers:
                shared[family, layer] = width * one.group.d_in
    return inner + sum(shared.values())


def _input_of(role: str) -> str:
    """Modules that read the same tensor keep it once; attention keeps its own answer anyway."""
    if role in ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_kv"):
        return "attention"
    if role in ("mlp_gate", "mlp_up", "mlp_gate_up"):
        return "mlp"
    return "attention's answer" if role == "attn_out" else role


# Time


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of the parts of a run; `total` is what a person waits for once it has started."""

    training: float
    validation: float
    start: float
    saving: float

    @property
    def total(self) -> float:
        """From loading to the saved adapter."""
        return self.training + self.validation + self.start + self.saving


def count_operations(
    shape: ModelShape, workload: Workload, *, recomputes: bool = False
) -> tuple[float, float]:
    """(of one training step, of all validations). LoRA needs 4N + 6P per token, the head its learned ones.

    Layers that are computed again need another 2N; those below the lowest adapted one never are.
    """
    passes = 2 + 2 * shape.share * (1 + (1 / AGAIN_SPEED if recomputes else 0))
    adapters = shape.trainable * (1 + RANK_FLOOR / shape.rank) / ADAPTER_SPEED
    per_token = shape.body * passes + 6 * adapters
    width = 4 * shape.layers * shape.attention / ATTENTION_SPEED  # per token and token looked at, forwards
    head = shape.vocabulary * shape.hidden
    step = workload.computed * per_token + workload.learned * 4 * head
    step += workload.attended * width * (passes - 1)
    held_out = workload.validated * (2 * shape.body + 2 * adapters)
    return step, held_out + workload.validation_attended * width + workload.validation_learned * 2 * head


def estimate_time(
    shape: ModelShape, workload: Workload, per_second: float, options: ComputeOptions
) -> TimeEstimate:
    """At `per_second` operations; the calls of every layer cost their own time, whatever their size."""
    step, held_out = count_operations(shape, workload, recomputes=options.recomputes)
    calls = workload.batches * (shape.layers + sum(one.modules for one in shape.adapted) / 4)
    writes = min(workload.validations, workload.steps) + 1
    return TimeEstimate(
        training=workload.steps * (step / per_second + calls * CALL_SECONDS[options.kind]),
        validation=held_out / per_second / FORWARD_SPEED,
        start=START_SECONDS[options.kind] + shape.parameters * 4 / 1e9,
        saving=1.0 + writes * (0.05 + CHECKPOINT_BYTES * shape.trainable / DISK_BYTES_PER_SECOND),
    )


def typical_operations_per_second(device: str, threads: int, dtype_bytes: int) -> float:
    """A first guess for a device nobody has trained on yet."""
    if device.lower().startswith("cpu"):
        return threads * CPU_OPERATIONS[dtype_bytes]
    return next(speed for word, speed in GPU_OPERATIONS if word in device)


def disk_bytes(trainable: int, adapter: int) -> int:
    """The most that a run writes: its checkpoints beside each other, and the adapter."""
    return KEPT_CHECKPOINTS * CHECKPOINT_BYTES * trainable + adapter
