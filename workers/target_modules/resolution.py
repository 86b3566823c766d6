"""Resolve chosen layers to the shortest PEFT arguments that match exactly these layers.

Every result is checked against PEFT's own matching rules. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workers.contract.errors import SpecError, TargetError
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import TargetSpec
from workers.target_modules.census import (
    PRESET_SCOPES,
    ROLES,
    SCOPES,
    Census,
    Matched,
    equivalent_roles,
    format_layers,
)
from workers.target_modules.peft_names import (
    common_layers,
    module_regex,
    module_suffixes,
    parameter_suffixes,
    pattern_key,
    surplus_modules,
)
from workers.target_modules.peft_rules import Arguments, NotConvertible, matched_names, matches_any

_FUSED = ("attn_qkv", "attn_kv", "mlp_gate_up")
# Roles that no preset adapts, in any scope.
_UNUSUAL_ROLES = ("router", "gate_other", "head", "embedding", "other")


@dataclass(frozen=True)
class Resolution:
    """The layers that a target-module config matches on one model, with PEFT's arguments, or a `refusal`.

    If set, PEFT gets `target_regex` instead of `target_modules`. `notes` are shown; `confirmations` are
    warnings that a user must accept before the run.
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
    refusal: str = ""

    @property
    def modules(self) -> int:
        """Number of modules and tensors that get an adapter."""
        return sum(item.modules for item in self.matched)

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers that get at least one adapter."""
        return tuple(sorted({layer for item in self.matched for layer in item.layers}))

    @property
    def coverage(self) -> str:
        """Return text such as "30 of 30 layers, 30 modules"."""
        return f"{len(self.layers)} of {self.layers_total} layers, {self.modules} modules"

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of the adapted roles, each once."""
        return tuple(dict.fromkeys(ROLES[item.role] for item in self.matched))

    @property
    def entries(self) -> tuple[str, ...]:
        """Return the entries for modules, then for tensors."""
        return (*self.target_modules, *self.target_parameters)

    @property
    def has_experts(self) -> bool:
        """Return whether PEFT adapts tensors instead of modules, which requires lora_dropout 0."""
        return any(item.as_parameter for item in self.matched)

    @property
    def key(self) -> str:
        """Return the arguments as one line, the key of `Census.refused`."""
        modules = [self.target_regex] if self.target_regex else sorted(self.target_modules)
        layers = [f"layers={format_layers(self.layers_to_transform)}"] if self.layers_to_transform else []
        return " ".join([*modules, *sorted(self.target_parameters), *layers])

    @property
    def confirmation_key(self) -> str:
        """Hash of the warnings, sent back with the user's confirmation; "" without any."""
        if not self.confirmations:
            return ""
        return hashlib.sha256("\n".join(self.confirmations).encode()).hexdigest()[:16]

    def names(self) -> list[str]:
        """Return full names of the modules and tensors that get an adapter, as PEFT reports them."""
        return [name for item in self.matched for name in item.peft_names()]

    def params(self, r: int) -> int:
        """Return the trainable parameters in a run of rank `r`."""
        return sum(item.params(r) for item in self.matched)

    def with_dora(self, learn: Hyperparameters) -> Resolution:
        """Return a copy with DoRA's magnitude vectors if the run uses DoRA."""
        if not learn.use_dora or self.refusal:
            return self
        matched = tuple(dataclasses.replace(item, has_magnitude=True) for item in self.matched)
        return dataclasses.replace(self, matched=matched)

    def summary(self, r: int, frozen: int, file_bytes: int) -> str:
        """Return coverage and size: "30 of 30 layers, 0.28 M parameters (0.2 %), 1.1 MB"."""
        count = self.params(r)
        size = f"{count / 1e6:,.2f} M" if count >= 1e5 else f"{count:,}"
        share = f"{100 * count / frozen:.2g} %" if frozen else "share unknown"
        return (
            f"{len(self.layers)} of {self.layers_total} layers, {size} parameters "
            f"({share}), {file_bytes / 1e6:,.1f} MB"
        )

    def expert_shares(self, r: int) -> tuple[str, ...]:
        """Return sentences on the rank and alpha of one expert, for an alpha of 2r; empty without experts."""
        shares = dict.fromkeys(
            (item.group.experts, item.rank(r), item.alpha(r, 2 * r))
            for item in self.matched
            if item.group.experts > 1
        )
        return tuple(
            f"{experts} experts share r {r}: each gets r {rank} and lora_alpha {alpha:g}."
            for experts, rank, alpha in shares
        )

    def arguments(self, r: int, lora_alpha: float, *, use_rslora: bool = False) -> Arguments:
        """Return PEFT's arguments in a run of rank `r`."""
        ranks: dict[str, int] = {}
        alphas: dict[str, float] = {}
        for item in self.matched:
            if item.rank(r) != r:
                ranks[pattern_key(item, self.matched)] = item.rank(r)
            alpha = item.alpha(r, lora_alpha, use_rslora=use_rslora)
            if alpha != lora_alpha:
                alphas[pattern_key(item, self.matched)] = alpha
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
    """Return the engine's spec for this resolution, with the counts that it must find attached.

    Raises TargetError for a refusal, and SpecError where DoRA cannot adapt a layer.
    """
    if resolution.refusal:
        raise TargetError(resolution.refusal)
    unsupported = next(
        (item for item in resolution.matched if item.as_parameter or item.group.kind != "linear"), None
    )
    if learn.use_dora and unsupported:
        raise SpecError(
            "use_dora",
            f"`use_dora` adapts only linear layers, and `{unsupported.pattern}` is not one. Turn it off, or "
            "choose other layers.",
        )
    resolution = resolution.with_dora(learn)
    arguments = resolution.arguments(learn.r, learn.lora_alpha or 2 * learn.r, use_rslora=learn.use_rslora)
    return TargetSpec(
        **vars(arguments),
        modules=resolution.modules,
        trainable_parameters=resolution.params(learn.r),
        names_sha256=names_sha256(resolution.names()),
    )


def names_sha256(names: Iterable[str]) -> str:
    """Return the hash of the names that a run must find attached."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def to_peft_arguments(chosen: Sequence[Matched], census: Census) -> Resolution:
    """Return PEFT's arguments for exactly these groups and layers, or a refusal."""
    if not any(item.modules for item in chosen):
        return Resolution(refusal="Choose at least one layer to adapt.")
    conv = next((item for item in chosen if item.group.kind == "conv"), None)
    if conv:
        return Resolution(
            refusal=f"`{conv.pattern}` is a convolution. Graftworks adapts linear layers, so leave it out."
        )
    placed = _nested(chosen, census)
    modules = [item for item in placed if not item.as_parameter]
    layers = common_layers(modules, census)
    target_modules = module_suffixes([item.group for item in modules], census)
    excluded: tuple[str, ...] = ()
    regex = ""
    if target_modules is None or layers is None:
        target_modules = tuple(sorted({item.pattern.rpartition(".")[2] for item in modules}))
        if census.rewrites:
            # PEFT reduces a regex to last segments on these models, so the rest is excluded by name.
            excluded = surplus_modules(target_modules, modules, census)
        else:
            regex = module_regex(modules, census)
    resolution = Resolution(
        target_modules=target_modules,
        target_regex=regex,
        target_parameters=parameter_suffixes([item for item in placed if item.as_parameter], census),
        exclude_modules=excluded,
        layers_to_transform=() if regex or excluded else layers or (),
        matched=placed,
        layers_total=census.num_layers,
    )
    return _checked(resolution, census)


def with_warnings(
    resolution: Resolution, census: Census, *, roles: Sequence[str] = (), layers: Sequence[int] = ()
) -> Resolution:
    """Return a copy with notes and with warnings to confirm.

    `roles`: the requested roles, if layers are chosen by role; `layers`: the requested layers.
    """
    if resolution.refusal:
        return resolution
    confirmations = [
        f"This also adapts `{item.pattern}` "
        f"({SCOPES[item.group.scope] if _is_outside_presets(item) else ROLES[item.role]}), as no preset does."
        for item in resolution.matched
        if _is_outside_presets(item) or item.role in _UNUSUAL_ROLES
    ]
    confirmations += _gaps(roles or [item.role for item in resolution.matched], resolution, layers)
    return dataclasses.replace(
        resolution, notes=tuple(_notes(resolution)), confirmations=tuple(confirmations)
    )


def _notes(resolution: Resolution) -> list[str]:
    notes = [
        f"This model fuses several layers into one: {ROLES[fused]} is adapted as a whole."
        for fused in _FUSED
        if any(item.role == fused for item in resolution.matched)
    ]
    if resolution.has_experts:
        notes.append("Dropout must be 0: PEFT does not support dropout on expert layers.")
    return notes


def _is_outside_presets(item: Matched) -> bool:
    return item.group.scope not in PRESET_SCOPES and item.role not in ("head", "embedding")


def _gaps(roles: Sequence[str], resolution: Resolution, layers: Sequence[int]) -> list[str]:
    """Return one warning for all roles that are missing in the same layers."""
    requested = set(layers) or set(range(resolution.layers_total))
    missing: dict[tuple[int, ...], list[str]] = {}
    for role in dict.fromkeys(roles):
        # Many architectures have no gate and no linear attention, so nothing is missing.
        if role in ("linattn_in", "mlp_gate", *_UNUSUAL_ROLES):
            continue
        # Linear attention has one input projection for query, key and value.
        counted = (*equivalent_roles(role), *(["linattn_in"] if role.startswith("attn_") else []))
        present = {layer for item in resolution.matched if item.role in counted for layer in item.layers}
        if present and not present >= requested:
            missing.setdefault(tuple(sorted(present)), []).append(ROLES[role])
    return [
        f"{_sentence_start(labels)} in {len(present)} of {resolution.layers_total} layers "
        f"({format_layers(present)}); the other layers get no adapter."
        for present, labels in missing.items()
    ]


def _sentence_start(labels: Sequence[str]) -> str:
    joined = " and ".join(part for part in (", ".join(labels[:-1]), labels[-1]) if part)
    return f"{joined[:1].upper()}{joined[1:]} {'exists' if len(labels) == 1 else 'exist'}"


def _checked(resolution: Resolution, census: Census) -> Resolution:
    """Return the resolution, or a refusal if PEFT would not match exactly these names at these ranks."""
    r = 64
    expected = {name: item.rank(r) for item in resolution.matched for name in item.peft_names()}
    try:
        attached = matched_names(resolution.arguments(r, 2 * r), census, r)
    except NotConvertible:
        attached = {}
    if attached == expected:
        return dataclasses.replace(resolution, refusal=census.refused.get(resolution.key, ""))
    return dataclasses.replace(
        resolution,
        refusal=f"PEFT cannot adapt exactly these layers: it would match {len(attached)} modules "
        f"instead of {len(expected)}.",
    )


def _nested(chosen: Sequence[Matched], census: Census) -> tuple[Matched, ...]:
    """Return copies with `as_parameter` and `depth` set."""
    nested = []
    for position, item in enumerate(chosen):
        is_rewritten = matches_any(census.rewrites, item.pattern)
        module = item.pattern.rpartition(".")[0]
        later = [
            other
            for other in chosen[position + 1 :]
            if other.group.is_parameter and other.pattern.rpartition(".")[0] == module
        ]
        depth = len(later) if item.group.is_parameter else 0
        as_parameter = item.group.is_parameter or is_rewritten
        nested.append(dataclasses.replace(item, as_parameter=as_parameter, depth=depth))
    return tuple(nested)
