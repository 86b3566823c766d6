"""The shortest PEFT arguments for a set of layers: name suffixes, tensor names, or else a regex.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from workers.target_modules.census import Census, Group, Matched
from workers.target_modules.peft_rules import matches, matches_any


def common_layers(modules: Sequence[Matched], census: Census) -> tuple[int, ...] | None:
    """Return one list of layers for all modules: () for all layers, None if the modules differ."""
    existing, chosen = _layers_by_pattern(census.groups), _layers_by_pattern(modules)
    if all(layers == existing[pattern] for pattern, layers in chosen.items()):
        return ()
    union = set().union(*chosen.values())
    is_common = all(
        "*" in pattern and layers == existing[pattern] & union for pattern, layers in chosen.items()
    )
    return tuple(sorted(union)) if is_common else None


def _layers_by_pattern(items: Iterable[Group | Matched]) -> dict[str, set[int]]:
    layers: dict[str, set[int]] = {}
    for item in items:
        layers.setdefault(item.pattern, set()).update(item.layers)
    return layers


def module_suffixes(chosen: Sequence[Group], census: Census) -> tuple[str, ...] | None:
    """Return the shortest name suffixes that match these modules and no others; None if there are none.

    A last segment that also begins another group's name (`dense`, `dense_4h_to_h`) gets its parent's name
    too: PEFT matches it correctly, but readers and serving flags do not.
    """
    modules = [group for group in census.groups if not group.is_parameter]
    outside = [group for group in modules if group not in chosen]
    entries = set()
    for group in chosen:
        others = [other for other in modules if _suffix_class(other) != _suffix_class(group)]
        entry = _entry(group, others, outside) or _entry(group, [], outside)
        if not entry:
            return None
        entries.add(entry)
    return tuple(sorted(entry for entry in entries if not matches_any(entries - {entry}, entry)))


def _suffix_class(group: Group) -> tuple[str, str]:
    """Return the class that shares one suffix: a role's encoder and decoder layers, not experts or towers."""
    return group.role, "layers" if group.scope in ("decoder", "encoder", "cross") else group.scope


def _entry(group: Group, others: Sequence[Group], outside: Sequence[Group]) -> str:
    tail = layer_suffix(group.pattern)
    is_misleading = any(layer_suffix(other.pattern)[-1].startswith(f"{tail[-1]}_") for other in others)
    shortest = 2 if is_misleading or group.scope == "shared_expert" else 1
    for length in range(min(shortest, len(tail)), len(tail) + 1):
        entry = ".".join(tail[-length:])
        if not any(matches(entry, other.pattern) for other in (*others, *outside)):
            return entry
    return ""


def layer_suffix(pattern: str) -> list[str]:
    """Return the name's segments after the layer number, which are the same in every layer."""
    segments = pattern.split(".")
    return segments[segments.index("*") + 1 :] if "*" in segments[:-1] else segments


def parameter_suffixes(chosen: Sequence[Matched], census: Census) -> tuple[str, ...]:
    """Return suffixes that no other tensor has, or all whole names where layers are left out."""
    chosen_groups = [item.group for item in chosen]
    outside = [group for group in census.groups if group not in chosen_groups and group.kind != "conv"]
    entries: set[str] = set()
    for item in chosen:
        pattern = item.group.parameter_name(item.pattern)
        entry = ".".join(layer_suffix(pattern)[-3:])
        if item.layers != item.group.layers or any(
            matches(entry, other.parameter_name(other.pattern)) for other in outside
        ):
            entries.update(item.group.parameter_name(name) for name in item.names())
        else:
            entries.add(entry)
    return tuple(sorted(entries))


def module_regex(chosen: Sequence[Matched], census: Census) -> str:
    """Return one regex for modules in a part of the model, or in layers that differ between groups."""
    existing = _layers_by_pattern(census.groups)
    heads: dict[str, list[str]] = {}
    for pattern, layers in _layers_by_pattern(chosen).items():
        head, star, tail = pattern.partition("*")
        number = r"\d+" if layers == existing[pattern] else f"({'|'.join(map(str, sorted(layers)))})"
        dot = r"\." if tail.startswith(".") else ""
        heads.setdefault(re.escape(head) + (number if star else "") + dot, []).append(
            re.escape(tail.removeprefix("."))
        )
    parts = [
        head + (f"({'|'.join(sorted(tails))})" if len(tails) > 1 else tails[0])
        for head, tails in heads.items()
    ]
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"


def pattern_key(item: Matched, matched: Sequence[Matched]) -> str:
    """Return a key for PEFT's patterns that matches no other adapted group, so that key order is free."""
    name = item.group.parameter_name(item.pattern) if item.as_parameter else item.pattern
    others = [
        other.group.parameter_name(other.pattern) if other.as_parameter else other.pattern
        for other in matched
        if (other.r, other.lora_alpha, other.group.experts) != (item.r, item.lora_alpha, item.group.experts)
    ]
    tail = layer_suffix(name)
    for length in range(min(2, len(tail)), len(tail) + 1):
        key = ".".join(tail[-length:])
        if not any(matches(key, other) for other in others):
            return key
    return re.escape(name).replace(r"\*", r"\d+")


def surplus_modules(entries: Sequence[str], chosen: Sequence[Matched], census: Census) -> tuple[str, ...]:
    """Return modules that the entries match but that were not chosen."""
    expected = {name for item in chosen for name in item.names()}
    modules = [group for group in census.groups if not group.is_parameter]
    matched = {name for group in modules for name in group.names() if matches_any(entries, name)}
    return tuple(sorted(matched - expected))
