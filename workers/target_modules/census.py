"""The layers of a base model as an inspect job counted them: groups, each with a role and a scope.

Stored as JSON on the base model, so that pages need not build the model. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from workers.contract.errors import TargetError
from workers.contract.specs import to_dict

CENSUS_VERSION = 2

ROLES: dict[str, str] = {
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
    "attn_qkv": "query, key and value (fused)",
    "attn_kv": "key and value (compressed)",
    "attn_out": "attention output",
    "linattn_in": "linear-attention input",
    "linattn_out": "linear-attention output",
    "mlp_gate": "MLP gate",
    "mlp_up": "MLP up",
    "mlp_gate_up": "MLP gate and up (fused)",
    "mlp_down": "MLP down",
    "expert_gate_up": "experts' gate and up",
    "expert_down": "experts' down",
    "router": "router",
    "gate_other": "other gate",
    "conv": "convolution",
    "head": "output head",
    "embedding": "embedding",
    "other": "other",
}
SCOPES: dict[str, str] = {
    "decoder": "language model",
    "encoder": "encoder",
    "cross": "cross-attention",
    "shared_expert": "shared experts",
    "routed_expert": "routed experts",
    "vision": "image or audio tower",
    "projector": "projector",
    "other": "outside the layers",
}
# Roles that count as another one: a fused or compressed layer, or experts, count as what they contain.
EQUIVALENT_ROLES: dict[str, tuple[str, ...]] = {
    "attn_q": ("attn_q", "attn_qkv"),
    "attn_k": ("attn_k", "attn_qkv", "attn_kv"),
    "attn_v": ("attn_v", "attn_qkv", "attn_kv"),
    "attn_out": ("attn_out", "linattn_out"),
    "linattn_out": ("attn_out", "linattn_out"),
    "mlp_gate": ("mlp_gate", "mlp_gate_up", "expert_gate_up"),
    "mlp_up": ("mlp_up", "mlp_gate_up", "expert_gate_up"),
    "mlp_gate_up": ("mlp_gate", "mlp_up", "mlp_gate_up", "expert_gate_up"),
    "expert_gate_up": ("mlp_gate", "mlp_up", "mlp_gate_up", "expert_gate_up"),
    "mlp_down": ("mlp_down", "expert_down"),
    "expert_down": ("mlp_down", "expert_down"),
}
# Presets reach into these parts of a model only; towers, projectors and heads stay as they are.
PRESET_SCOPES = ("decoder", "encoder", "cross", "shared_expert", "routed_expert")


@dataclass(frozen=True)
class Group:
    """Layers of one kind and shape: `pattern` is their name with `*` for the layer number.

    `kind` is linear, conv1d, embedding, conv, expert (one tensor [experts, ., .]) or parameter (a plain
    matrix, such as a router's). A, the first half of an adapter, reads `d_in`; B writes `d_out`.
    """

    pattern: str
    role: str
    scope: str
    kind: str
    layers: tuple[int, ...]
    d_in: int
    d_out: int
    experts: int = 1
    bias: bool = False

    @property
    def modules(self) -> int:
        """Number of modules in the group; a name without a layer number stands for one."""
        return len(self.layers) if "*" in self.pattern else 1

    @property
    def is_parameter(self) -> bool:
        """Return whether the name is a tensor's, not a module's."""
        return self.kind in ("expert", "parameter")

    def names(self, layers: Iterable[int] | None = None) -> list[str]:
        """Return the full names in these layers, by default in all; without a layer number it is one."""
        if "*" not in self.pattern:
            return [self.pattern]
        chosen = self.layers if layers is None else layers
        return [self.pattern.replace("*", str(layer), 1) for layer in chosen]

    def parameter_name(self, name: str) -> str:
        """Return the tensor behind a name of this group: its own, or its module's weight."""
        return name if self.is_parameter else f"{name}.weight"


@dataclass(frozen=True)
class Census:
    """The groups of one base model, and the facts that a run needs beforehand.

    `rewrites`: names that PEFT replaces on this model type before matching (old to new). `refused`: arguments
    (`Resolution.key`) that PEFT does not attach as intended, with the reason.
    """

    model_type: str
    parameters: int
    hidden_size: int
    num_layers: int
    max_positions: int
    vocab_size: int
    groups: tuple[Group, ...]
    tied_embeddings: bool = False
    has_chat_template: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    rewrites: dict[str, str] = field(default_factory=dict)
    version: int = CENSUS_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Census:
        """Rebuild from JSON. Raises TargetError for another version: the model must be inspected again."""
        if values.get("version") != CENSUS_VERSION:
            raise TargetError("This base model was counted by another version. Inspect it again.")
        groups = tuple(Group(**{**group, "layers": tuple(group["layers"])}) for group in values["groups"])
        return cls(**{**values, "groups": groups})


@dataclass(frozen=True)
class Matched:
    """Layers of one group that get an adapter.

    `r`, `lora_alpha`: of this group; 0 follows the run, and experts then share the run's rank.
    `as_parameter`: PEFT is given the tensor, not the module. `depth`: adapters that PEFT wraps around this
    one because they sit on other tensors of the same module. `has_magnitude`: with DoRA's magnitude vector.
    """

    group: Group
    layers: tuple[int, ...]
    r: int = 0
    lora_alpha: float = 0
    as_parameter: bool = False
    depth: int = 0
    has_magnitude: bool = False

    @property
    def role(self) -> str:
        """Return the role of the group."""
        return self.group.role

    @property
    def pattern(self) -> str:
        """Name of the group with `*` for the layer number."""
        return self.group.pattern

    @property
    def modules(self) -> int:
        """Number of modules or tensors that get an adapter."""
        return len(self.layers) if "*" in self.pattern else 1

    def names(self) -> list[str]:
        """Return the full names of what is adapted."""
        return self.group.names(self.layers)

    def peft_names(self) -> list[str]:
        """Return these names as PEFT reports them: those of the modules, or of the tensors."""
        return [self.group.parameter_name(name) if self.as_parameter else name for name in self.names()]

    def rank(self, r: int) -> int:
        """Return the rank of one module, or of one expert, in a run of rank `r`."""
        return self.r or max(1, r // self.group.experts)

    def alpha(self, r: int, lora_alpha: float, *, use_rslora: bool = False) -> float:
        """Return the group's alpha: its own, else the one that keeps the run's scale at the group's rank."""
        if self.lora_alpha:
            return self.lora_alpha
        share = self.rank(r) / r
        alpha = lora_alpha * (share**0.5 if use_rslora else share)
        return int(alpha) if alpha == int(alpha) else alpha

    def params(self, r: int) -> int:
        """Return trainable parameters in a run of rank `r`: A [r, d_in] and B [d_out, r], per expert."""
        group = self.group
        magnitudes = self.modules * group.d_out if self.has_magnitude else 0
        return self.modules * self.rank(r) * group.experts * (group.d_in + group.d_out) + magnitudes

    def tensors(self, r: int) -> Iterator[tuple[str, list[int]]]:
        """Yield (name, shape) of every tensor that PEFT saves for these layers."""
        group, width = self.group, self.rank(r) * self.group.experts
        inner = ".base_layer" * self.depth
        for name in self.names():
            module = name.rpartition(".")[0] + inner if group.is_parameter else name
            if group.kind == "embedding":
                yield f"base_model.model.{module}.lora_embedding_A", [width, group.d_in]
                yield f"base_model.model.{module}.lora_embedding_B", [group.d_out, width]
            else:
                yield f"base_model.model.{module}.lora_A.weight", [width, group.d_in]
                yield f"base_model.model.{module}.lora_B.weight", [group.d_out, width]
            if self.has_magnitude:
                yield f"base_model.model.{module}.lora_magnitude_vector", [group.d_out]


def equivalent_roles(role: str) -> tuple[str, ...]:
    """Return the roles that count as `role`."""
    return EQUIVALENT_ROLES.get(role, (role,))


def format_layers(layers: Iterable[int]) -> str:
    """Return layer numbers as text: "0-3, 7"."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
