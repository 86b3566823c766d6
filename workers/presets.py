"""The presets: named sets of roles, and what each of them means on one model.

A `Census` lists a base model's layer groups, counted once by an inspect job; `resolve` turns roles into
PEFT's arguments from that list alone, so a page answers at once. Standard library only: knows no rows and
no tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from workers.census import PRESET_SCOPES, ROLES, Census, Group, stand_ins, whole
from workers.errors import SpecError
from workers.targets import Resolution, to_peft_arguments, with_warnings

# Older MLPs have no gate, and most models no linear attention: their absence is no gap.
OPTIONAL = ("mlp_gate", "linattn_in")


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


def preset(slug: str) -> Preset:
    """The built-in preset of that slug; an unknown one is a SpecError that lists the known ones."""
    if slug not in PRESETS:
        raise SpecError(
            "target_module_config", f"There is no preset `{slug}`. Known presets: {', '.join(PRESETS)}."
        )
    return PRESETS[slug]


def resolve(roles: Sequence[str], census: Census) -> Resolution:
    """PEFT's arguments for `roles` on this model, or a refusal that names what is missing and what works."""
    answer = _resolve(roles, census)
    if not answer.refusal:
        return answer
    alternative = _working_preset(roles, census)
    advice = f" Choose {alternative} instead." if alternative else ""
    return dataclasses.replace(answer, refusal=answer.refusal + advice)


def _resolve(roles: Sequence[str], census: Census) -> Resolution:
    refusal = _refusal(roles, census)
    if refusal:
        return Resolution(layers_total=census.num_layers, refusal=refusal)
    wanted = {stand_in for role in roles for stand_in in stand_ins(role)}
    chosen = whole(group for group in _reachable(census) if group.role in wanted)
    return with_warnings(to_peft_arguments(chosen, census), census, roles=roles)


def _reachable(census: Census) -> list[Group]:
    return [group for group in census.groups if group.scope in PRESET_SCOPES]


def _refusal(roles: Sequence[str], census: Census) -> str:
    if not roles:
        return "Choose at least one kind of layer to adapt."
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        return f"`{unknown[0]}` is no role of a layer."
    present = {group.role for group in _reachable(census)}
    missing = [role for role in roles if role not in OPTIONAL and not present.intersection(stand_ins(role))]
    if missing:
        return f"This model has no layer that Graftworks knows as {ROLES[missing[0]]}."
    return ""


def _working_preset(roles: Sequence[str], census: Census) -> str:
    for candidate in PRESETS.values():
        if candidate.roles != tuple(roles) and not _resolve(candidate.roles, census).refusal:
            return candidate.label
    return ""
