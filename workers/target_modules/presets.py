"""Built-in presets: named sets of roles, and their resolution to PEFT's arguments on one base model.

`resolve` needs the census alone, so that a page answers at once. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from workers.contract.errors import SpecError
from workers.target_modules.census import (
    PRESET_SCOPES,
    ROLES,
    Census,
    Group,
    Matched,
    equivalent_roles,
)
from workers.target_modules.resolution import Resolution, to_peft_arguments, with_warnings

# Older MLPs have no gate, and most models no linear attention: neither is reported as missing.
OPTIONAL = ("mlp_gate", "linattn_in")


@dataclass(frozen=True)
class Preset:
    """A named set of roles. `sentence` is shown on its card."""

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


def preset(slug: str) -> Preset:
    """Return the built-in preset of that slug. Raises SpecError, which lists the known ones."""
    if slug not in PRESETS:
        raise SpecError(
            "target_module_config", f"There is no preset `{slug}`. Known presets: {', '.join(PRESETS)}."
        )
    return PRESETS[slug]


def resolve(roles: Sequence[str], census: Census) -> Resolution:
    """Return PEFT's arguments for `roles`, or a refusal that names the missing role and an alternative."""
    resolution = _resolve(roles, census)
    if not resolution.refusal:
        return resolution
    alternative = _working_preset(roles, census)
    advice = f" Choose {alternative} instead." if alternative else ""
    return dataclasses.replace(resolution, refusal=resolution.refusal + advice)


def _resolve(roles: Sequence[str], census: Census) -> Resolution:
    refusal = _refusal(roles, census)
    if refusal:
        return Resolution(refusal=refusal)
    wanted = {stand_in for role in roles for stand_in in equivalent_roles(role)}
    chosen = [Matched(group, group.layers) for group in _reachable(census) if group.role in wanted]
    return with_warnings(to_peft_arguments(chosen, census), census, roles=roles)


def _reachable(census: Census) -> list[Group]:
    return [group for group in census.groups if group.scope in PRESET_SCOPES]


def _refusal(roles: Sequence[str], census: Census) -> str:
    if not roles:
        return "Choose at least one kind of layer to adapt."
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        return f"`{unknown[0]}` is not a known layer role."
    present = {group.role for group in _reachable(census)}
    missing = [
        role for role in roles if role not in OPTIONAL and not present.intersection(equivalent_roles(role))
    ]
    if missing:
        return f"This model has no layer that Graftworks knows as {ROLES[missing[0]]}."
    return ""


def _working_preset(roles: Sequence[str], census: Census) -> str:
    for candidate in PRESETS.values():
        if candidate.roles != tuple(roles) and not _resolve(candidate.roles, census).refusal:
            return candidate.label
    return ""
