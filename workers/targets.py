"""From chosen layers to PEFT's arguments, in the shortest form that reaches them and nothing else.

Every answer is checked against PEFT's own rules before it is given. Standard library only: knows no presets,
no rows and no tensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workers.census import PRESET_SCOPES, ROLES, SCOPES, Census, Matched, spans, stand_ins
from workers.errors import SpecError, TargetError
from workers.hyperparameters import Hyperparameters
from workers.matching import Arguments, NotConvertible, any_matches, attached
from workers.specs import TargetSpec
from workers.spelling import (
    also_named,
    common_layers,
    ends_of_names,
    pattern_key,
    regex_of,
    tensor_names,
)

_FUSED = ("attn_qkv", "attn_kv", "mlp_gate_up")
# What no preset adapts, wherever it stands.
_UNUSUAL_ROLES = ("router", "gate_other", "head", "embedding", "other")


@dataclass(frozen=True)
class Unmatched:
    """A name that reaches nothing, and the names of this model that look most like it."""

    entry: str
    near: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The mistake in words."""
        names = ", ".join(f"`{name}`" for name in self.near)
        return f"`{self.entry}` matches no layer of this model. Near names: {names}."


@dataclass(frozen=True)
class Resolution:
    """What a choice means on one model. With a `refusal` nothing else counts: such a run is not started.

    `target_modules` reads as people know it; where `target_regex` is set, PEFT is given that instead.
    `notes` are facts to show; `confirmations` are sentences that a person has to accept before the run.
    """

    target_modules: tuple[str, ...] = ()
    target_regex: str = ""
    target_parameters: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    matched: tuple[Matched, ...] = ()
    layers_total: int = 0
    notes: tuple[str, ...] = ()
    confirmations: tuple[str, ...] = ()
    unmatched: tuple[Unmatched, ...] = ()
    refusal: str = ""

    @property
    def modules(self) -> int:
        """How many modules and tensors get an adapter."""
        return sum(one.modules for one in self.matched)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that get at least one adapter."""
        return tuple(sorted({layer for one in self.matched for layer in one.layers}))

    @property
    def layers_matched(self) -> int:
        """How many layers get at least one adapter."""
        return len(self.layers)

    @property
    def sentence(self) -> str:
        """Coverage in words: "30 of 30 layers, 30 modules"."""
        return f"{self.layers_matched} of {self.layers_total} layers, {self.modules} modules"

    @property
    def labels(self) -> tuple[str, ...]:
        """The roles really adapted, in the words of the forms, each once."""
        return tuple(dict.fromkeys(ROLES[one.role] for one in self.matched))

    @property
    def entries(self) -> tuple[str, ...]:
        """The names that say what is adapted: of modules, then of tensors."""
        return (*self.target_modules, *self.target_parameters)

    @property
    def has_experts(self) -> bool:
        """Whether PEFT has to adapt tensors instead of modules: then lora_dropout must be 0."""
        return any(one.as_parameter for one in self.matched)

    @property
    def key(self) -> str:
        """The arguments as one line, by which a census remembers what PEFT refused."""
        modules = [self.target_regex] if self.target_regex else sorted(self.target_modules)
        layers = [f"layers={spans(self.layers_to_transform)}"] if self.layers_to_transform else []
        return " ".join([*modules, *sorted(self.target_parameters), *layers])

    @property
    def confirmation_key(self) -> str:
        """Stands for the very sentences that were accepted; empty where there is nothing to accept."""
        if not self.confirmations:
            return ""
        return hashlib.sha256("\n".join(self.confirmations).encode()).hexdigest()[:16]

    def names(self) -> list[str]:
        """Full names of the modules and tensors that get an adapter, as PEFT reports them."""
        return [
            one.group.parameter_name(name) if one.as_parameter else name
            for one in self.matched
            for name in one.names()
        ]

    def params(self, r: int) -> int:
        """Trainable parameters in a run of rank `r`."""
        return sum(one.params(r) for one in self.matched)

    def shaped(self, learn: Hyperparameters) -> Resolution:
        """The same with what the run's way of adapting adds to each module."""
        if not learn.use_dora or self.refusal:
            return self
        matched = tuple(dataclasses.replace(one, has_magnitude=True) for one in self.matched)
        return dataclasses.replace(self, matched=matched)

    def words(self, r: int, frozen: int, file_bytes: int) -> str:
        """What is adapted, in one line: "30 of 30 layers, 0.28 M parameters (0.2 %), 1.1 MB"."""
        count = self.params(r)
        share = f"{100 * count / frozen:.2g} %" if frozen else "share unknown"
        return (
            f"{self.layers_matched} of {self.layers_total} layers, {count / 1e6:,.2f} M parameters "
            f"({share}), {file_bytes / 1e6:,.1f} MB"
        )

    def shares(self, r: int, lora_alpha: float, *, use_rslora: bool = False) -> tuple[str, ...]:
        """What one expert gets of the run's rank, in words; empty without experts."""
        found = dict.fromkeys(
            (one.group.experts, one.rank(r), one.alpha(r, lora_alpha, use_rslora=use_rslora))
            for one in self.matched
            if one.group.experts > 1
        )
        return tuple(
            f"{experts} experts share r {r}: each gets r {rank} and lora_alpha {alpha:g}."
            for experts, rank, alpha in found
        )

    def arguments(self, r: int, lora_alpha: float, *, use_rslora: bool = False) -> Arguments:
        """PEFT's arguments in a run of rank `r`."""
        ranks: dict[str, int] = {}
        alphas: dict[str, float] = {}
        for one in self.matched:
            if one.rank(r) != r:
                ranks[pattern_key(one, self.matched)] = one.rank(r)
            alpha = one.alpha(r, lora_alpha, use_rslora=use_rslora)
            if alpha != lora_alpha:
                alphas[pattern_key(one, self.matched)] = alpha
        return Arguments(
            target_modules=self.target_modules,
            target_regex=self.target_regex,
            target_parameters=self.target_parameters,
            exclude_modules=self.exclude_modules,
            layers_to_transform=self.layers_to_transform,
            rank_pattern=ranks,
            alpha_pattern=alphas,
        )


def target_spec(resolution: Resolution, learn: Hyperparameters) -> TargetSpec:
    """The engine's order for this resolution in this run, with what it must find attached."""
    if resolution.refusal:
        raise TargetError(resolution.refusal)
    odd = next((one for one in resolution.matched if one.as_parameter or one.group.kind != "linear"), None)
    if learn.use_dora and odd:
        raise SpecError(
            "use_dora",
            f"`use_dora` adapts linear layers alone, and `{odd.pattern}` is none. Switch it off, or choose "
            "other layers.",
        )
    resolution = resolution.shaped(learn)
    # Left out, lora_alpha has become 2r when the hyper-parameters were made.
    found = resolution.arguments(learn.r, learn.lora_alpha or 2 * learn.r, use_rslora=learn.use_rslora)
    return TargetSpec(
        target_modules=found.target_modules,
        target_regex=found.target_regex,
        target_parameters=found.target_parameters,
        rank_pattern=found.rank_pattern,
        alpha_pattern=found.alpha_pattern,
        exclude_modules=found.exclude_modules,
        layers_to_transform=found.layers_to_transform,
        modules=resolution.modules,
        trainable_parameters=resolution.params(learn.r),
        names_sha256=names_sha256(resolution.names()),
    )


def names_sha256(names: Iterable[str]) -> str:
    """What a run must find attached, name by name, in one short value."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def to_peft_arguments(chosen: Sequence[Matched], census: Census) -> Resolution:
    """PEFT's arguments for exactly these groups and layers; a refusal if PEFT cannot be told so."""
    if not any(one.modules for one in chosen):
        return Resolution(layers_total=census.num_layers, refusal="Choose at least one layer to adapt.")
    conv = next((one for one in chosen if one.group.kind == "conv"), None)
    if conv:
        return Resolution(
            layers_total=census.num_layers,
            refusal=f"`{conv.pattern}` is a convolution. Graftworks adapts linear layers, so leave it out.",
        )
    placed = _nested(chosen, census)
    modules = [one for one in placed if not one.as_parameter]
    layers = common_layers(modules, census)
    target_modules = ends_of_names([one.group for one in modules], census)
    excluded: tuple[str, ...] = ()
    regex = ""
    if target_modules is None or layers is None:
        target_modules = tuple(sorted({one.pattern.rpartition(".")[2] for one in modules}))
        if census.rewrites:
            # Here PEFT reduces a regex to last names, so the list says all of them and takes the rest away.
            excluded = also_named(target_modules, modules, census)
        else:
            regex = regex_of(modules, census)
    resolution = Resolution(
        target_modules=target_modules,
        target_regex=regex,
        target_parameters=tensor_names([one for one in placed if one.as_parameter], census),
        exclude_modules=excluded,
        layers_to_transform=() if regex or excluded else layers or (),
        matched=placed,
        layers_total=census.num_layers,
    )
    return _checked(resolution, census)


def with_warnings(
    resolution: Resolution, census: Census, *, roles: Sequence[str] = (), layers: Sequence[int] = ()
) -> Resolution:
    """The same with what people should know, and with what they have to accept, before they start.

    `roles` are what was asked for, where that was not the layers themselves; `layers` those that were chosen.
    """
    if resolution.refusal:
        return resolution
    confirmations = [
        f"This also adapts `{one.pattern}` "
        f"({SCOPES[one.group.scope] if _is_apart(one) else ROLES[one.role]}), as no preset does."
        for one in resolution.matched
        if _is_apart(one) or one.role in _UNUSUAL_ROLES
    ]
    confirmations += _gaps(roles or [one.role for one in resolution.matched], resolution, layers)
    return dataclasses.replace(
        resolution, notes=tuple(_notes(resolution)), confirmations=tuple(confirmations)
    )


def _notes(resolution: Resolution) -> list[str]:
    notes = [
        f"One layer does the work of several here: {ROLES[fused]} is adapted whole."
        for fused in _FUSED
        if any(one.role == fused for one in resolution.matched)
    ]
    if resolution.has_experts:
        notes.append("Dropout must be 0 here, as PEFT cannot drop the inputs of experts.")
    return notes


def _is_apart(one: Matched) -> bool:
    return one.group.scope not in PRESET_SCOPES and one.role not in ("head", "embedding")


def _gaps(roles: Sequence[str], resolution: Resolution, layers: Sequence[int]) -> list[str]:
    """One sentence for all roles that the same layers lack."""
    asked = set(layers) or set(range(resolution.layers_total))
    missing: dict[tuple[int, ...], list[str]] = {}
    for role in dict.fromkeys(roles):
        # A gate and what linear attention reads are absent from layers that are complete without them.
        if role in ("linattn_in", "mlp_gate", *_UNUSUAL_ROLES):
            continue
        # Linear attention has no query, key and value of their own; what it reads stands for them.
        counted = (*stand_ins(role), *(["linattn_in"] if role.startswith("attn_") else []))
        found = {layer for one in resolution.matched if one.role in counted for layer in one.layers}
        if found and not found >= asked:
            missing.setdefault(tuple(sorted(found)), []).append(ROLES[role])
    return [
        f"{_sentence_start(labels)} in {len(found)} of {resolution.layers_total} layers ({spans(found)}); "
        "the other layers stay without."
        for found, labels in missing.items()
    ]


def _sentence_start(labels: Sequence[str]) -> str:
    joined = " and ".join(part for part in (", ".join(labels[:-1]), labels[-1]) if part)
    return f"{joined[:1].upper()}{joined[1:]} {'exists' if len(labels) == 1 else 'exist'}"


def _checked(resolution: Resolution, census: Census) -> Resolution:
    """The resolution, if PEFT's rules reach what was meant at the ranks that were meant."""
    r = 64
    meant = {
        one.group.parameter_name(name) if one.as_parameter else name: one.rank(r)
        for one in resolution.matched
        for name in one.names()
    }
    try:
        reached = attached(resolution.arguments(r, 2 * r), census, r)
    except NotConvertible:
        reached = {}
    if reached == meant:
        return dataclasses.replace(resolution, refusal=census.refused.get(resolution.key, ""))
    return dataclasses.replace(
        resolution,
        refusal=f"PEFT cannot be told to adapt exactly these layers: it would take {len(reached)} modules "
        f"where {len(meant)} are meant.",
    )


def _nested(chosen: Sequence[Matched], census: Census) -> tuple[Matched, ...]:
    """The same, each knowing whether PEFT is given its tensor, and how deep it lies in its module."""
    rewritten = tuple(census.rewrites)
    placed = [
        dataclasses.replace(
            one, as_parameter=one.group.is_parameter or any_matches(rewritten, one.group.pattern)
        )
        for one in chosen
    ]
    nested = []
    for position, one in enumerate(placed):
        module = one.pattern.rpartition(".")[0]
        later = [
            other
            for other in placed[position + 1 :]
            if other.group.is_parameter and other.pattern.rpartition(".")[0] == module
        ]
        depth = len(later) if one.group.is_parameter else 0
        nested.append(dataclasses.replace(one, depth=depth))
    return tuple(nested)
