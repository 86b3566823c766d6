"""Where an adapter may sit: roles of a model's layers, the presets, and what a preset means on one model.

A `Census` lists a base model's layer groups, counted once by an inspect job; `resolve` turns roles into
PEFT's arguments from that list alone, so a page answers at once. Standard library only: knows no rows and
no tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.errors import SpecError, TargetError
from workers.specs import TargetSpec

CENSUS_VERSION = 1

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
# Presets reach into these parts of a model only; vision towers, projectors and experts stay as they are.
PRESET_SCOPES = ("decoder", "encoder", "cross")

# What can stand in for an asked role: a fused or compressed layer counts as the roles that it contains.
COUNTERPARTS: dict[str, tuple[str, ...]] = {
    "attn_q": ("attn_q", "attn_qkv"),
    "attn_k": ("attn_k", "attn_qkv", "attn_kv"),
    "attn_v": ("attn_v", "attn_qkv", "attn_kv"),
    "attn_out": ("attn_out", "linattn_out"),
    "mlp_gate": ("mlp_gate", "mlp_gate_up"),
    "mlp_up": ("mlp_up", "mlp_gate_up"),
}
# Older MLPs have no gate, and most models no linear attention: their absence is no gap.
OPTIONAL = ("mlp_gate", "linattn_in")


@dataclass(frozen=True)
class Group:
    """Layers of one kind and shape: `pattern` is their name with `*` for the layer number.

    `kind` is linear, conv1d, embedding, conv or expert; `experts` is the matrices in one expert parameter.
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
        """How many modules the group holds; a name without a layer number stands for one."""
        return len(self.layers) if "*" in self.pattern else 1

    @property
    def params_per_rank(self) -> int:
        """LoRA parameters of the whole group at r 1: A is [r, d_in] and B is [d_out, r]."""
        return self.modules * self.experts * (self.d_in + self.d_out)

    def names(self) -> list[str]:
        """Full module names, as the model spells them."""
        if "*" not in self.pattern:
            return [self.pattern]
        return [self.pattern.replace("*", str(layer), 1) for layer in self.layers]


@dataclass(frozen=True)
class Census:
    """What an inspect job counted in one base model, stored as JSON. `refused`: module list to reason."""

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
    version: int = CENSUS_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = dataclasses.asdict(self)
        plain["groups"] = [{**group, "layers": list(group["layers"])} for group in plain["groups"]]
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Census:
        """Rebuild from JSON. A census of another version is refused, as its model must be inspected again."""
        if values.get("version") != CENSUS_VERSION:
            raise TargetError("This base model was counted by another version. Inspect it again.")
        groups = tuple(Group(**{**group, "layers": tuple(group["layers"])}) for group in values["groups"])
        return cls(**{**values, "groups": groups})


@dataclass(frozen=True)
class Preset:
    """A named set of roles. `sentence` stands under its card."""

    slug: str
    label: str
    roles: tuple[str, ...]
    sentence: str


ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_out", "linattn_in")
MLP = ("mlp_gate", "mlp_up", "mlp_down")

PRESETS: dict[str, Preset] = {
    item.slug: item
    for item in (
        Preset(
            "efficient",
            "Efficient",
            ("attn_out",),
            "Adapts only the layer that writes attention results back. Smallest file, least memory. "
            "Start here, then check on your data.",
        ),
        Preset(
            "balanced",
            "Balanced",
            ("attn_out", "mlp_down"),
            "Adds the output layer of each feed-forward block. Try it when Efficient falls short: hard "
            "tasks, long answers.",
        ),
        Preset(
            "query_value",
            "Query + value",
            ("attn_q", "attn_v"),
            "The classic LoRA choice; handy for comparing with older work.",
        ),
        Preset("attention", "Attention", ATTENTION, "All attention layers, no MLP. Middle size."),
        Preset(
            "mlp",
            "MLP",
            MLP,
            "All feed-forward layers, attention untouched. Ahead of attention in several studies; more "
            "memory.",
        ),
        Preset(
            "quality",
            "Quality",
            ATTENTION + MLP,
            "Adapts every linear layer. Largest file and memory; the usual choice elsewhere.",
        ),
    )
}
RECOMMENDED = "efficient"
RECOMMENDED_LABEL = "Recommended default"
RECOMMENDED_WHY = (
    "Recommended default: smallest adapter. An Amazon Science article (19 March 2026) suggests it as the "
    "efficiency/accuracy trade-off. Other studies favour more modules on hard tasks."
)


@dataclass(frozen=True)
class Resolution:
    """What roles mean on one model. With a `refusal` nothing else counts: such a run is not started."""

    target_modules: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    matched: tuple[Group, ...] = ()
    modules: int = 0
    layers_matched: int = 0
    layers_total: int = 0
    params_per_rank: int = 0
    notes: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def sentence(self) -> str:
        """Coverage in words: "30 of 30 layers, 30 modules"."""
        return f"{self.layers_matched} of {self.layers_total} layers, {self.modules} modules"

    @property
    def labels(self) -> tuple[str, ...]:
        """The roles really adapted, in the words of the forms, each once."""
        return tuple(dict.fromkeys(ROLES[group.role] for group in self.matched))


def preset(slug: str) -> Preset:
    """The built-in preset of that slug; an unknown one is a SpecError that lists the known ones."""
    if slug not in PRESETS:
        raise SpecError(
            "target_module_config", f"There is no preset `{slug}`. Known presets: {', '.join(PRESETS)}."
        )
    return PRESETS[slug]


def matches(entry: str, key: str) -> bool:
    """PEFT's rule for one entry of a `target_modules` list: the whole name, or its end after a dot."""
    return key == entry or key.endswith("." + entry)


def resolve(roles: Sequence[str], census: Census) -> Resolution:
    """PEFT's arguments for `roles` on this model, or a refusal that names what is missing and what works."""
    answer = _resolve(roles, census)
    if not answer.refusal:
        return answer
    alternative = _working_preset(roles, census)
    advice = f" Choose {alternative} instead." if alternative else ""
    return dataclasses.replace(answer, refusal=answer.refusal + advice)


def target_spec(resolution: Resolution, r: int) -> TargetSpec:
    """The engine's order for this resolution at rank `r`, with what it must find attached."""
    if resolution.refusal:
        raise TargetError(resolution.refusal)
    return TargetSpec(
        target_modules=resolution.target_modules,
        target_parameters=resolution.target_parameters,
        modules=resolution.modules,
        trainable_parameters=r * resolution.params_per_rank,
    )


def _resolve(roles: Sequence[str], census: Census) -> Resolution:
    refusal = _refusal(roles, census)
    if refusal:
        return Resolution(layers_total=census.num_layers, refusal=refusal)
    wanted = {stand_in for role in roles for stand_in in _stand_ins(role)}
    chosen = tuple(group for group in _reachable(census) if group.role in wanted)
    entries = {group.pattern: _entry(group, census.groups) for group in chosen}
    unclear = [pattern for pattern, entry in entries.items() if not entry]
    if unclear:
        reason = f"On this model `{unclear[0]}` shares its name with layers outside the language model's own."
        return Resolution(
            layers_total=census.num_layers, refusal=f"{reason} Graftworks does not target it yet."
        )
    target_modules = tuple(sorted(set(entries.values())))
    return Resolution(
        target_modules=target_modules,
        matched=chosen,
        modules=sum(group.modules for group in chosen),
        layers_matched=len({layer for group in chosen for layer in group.layers}),
        layers_total=census.num_layers,
        params_per_rank=sum(group.params_per_rank for group in chosen),
        notes=tuple(_notes(roles, chosen, census)),
        refusal=census.refused.get(" ".join(target_modules), ""),
    )


def _stand_ins(role: str) -> tuple[str, ...]:
    return COUNTERPARTS.get(role, (role,))


def _reachable(census: Census) -> list[Group]:
    return [group for group in census.groups if group.scope in PRESET_SCOPES and group.kind != "expert"]


def _refusal(roles: Sequence[str], census: Census) -> str:
    if not roles:
        return "Choose at least one kind of layer to adapt."
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        return f"`{unknown[0]}` is no role of a layer."
    experts = any(group.kind == "expert" or group.scope == "routed_expert" for group in census.groups)
    if experts and any(role.startswith("mlp_") for role in roles):
        return "This model keeps its MLP in experts. Graftworks does not adapt experts yet."
    present = {group.role for group in _reachable(census)}
    missing = [role for role in roles if role not in OPTIONAL and not present.intersection(_stand_ins(role))]
    if missing:
        return f"This model has no layer that Graftworks knows as {ROLES[missing[0]]}."
    return ""


def _working_preset(roles: Sequence[str], census: Census) -> str:
    for candidate in PRESETS.values():
        if candidate.roles != tuple(roles) and not _resolve(candidate.roles, census).refusal:
            return candidate.label
    return ""


def _entry(group: Group, groups: Iterable[Group]) -> str:
    """The shortest end of the group's name that no group of another role or scope shares; "" if none is.

    A last segment that also begins another group's name (`dense`, `dense_4h_to_h`) gets its parent's name
    too: PEFT would match it rightly, but people and serving flags read it wrongly.
    """
    others = [other for other in groups if (other.role, other.scope) != (group.role, group.scope)]
    segments = group.pattern.split(".")
    tail = segments[segments.index("*") + 1 :] if "*" in segments else segments
    misleading = any(other.pattern.split(".")[-1].startswith(f"{tail[-1]}_") for other in others)
    shortest = 2 if misleading and len(tail) > 1 else 1
    for length in range(shortest, len(tail) + 1):
        entry = ".".join(tail[-length:])
        if not any(matches(entry, other.pattern) for other in others):
            return entry
    return ""


def _notes(roles: Sequence[str], chosen: Sequence[Group], census: Census) -> list[str]:
    """What people should know before they start: fused layers, and roles that only some layers have."""
    notes = []
    for fused in ("attn_qkv", "attn_kv", "mlp_gate_up"):
        if any(group.role == fused for group in chosen):
            notes.append(f"One layer does the work of several here: {ROLES[fused]} is adapted whole.")
    for role in roles:
        layers = {layer for group in chosen if group.role in _stand_ins(role) for layer in group.layers}
        if layers and len(layers) < census.num_layers:
            notes.append(f"{ROLES[role].capitalize()} exists in {len(layers)} of {census.num_layers} layers.")
    return notes
