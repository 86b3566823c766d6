"""How PEFT is told which layers are meant: ends of names, names of tensors, a regex where no list can say it.

Standard library only: knows no presets, no rows and no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from workers.census import Census, Group, Matched
from workers.matching import any_matches, matches


def common_layers(modules: Sequence[Matched], census: Census) -> tuple[int, ...] | None:
    """Layers to name once for all modules: () for all of them, None where one list cannot say it."""
    whole = {group.pattern: set[int]() for group in census.groups}
    for group in census.groups:
        whole[group.pattern] |= set(group.layers)
    taken = {one.pattern: set[int]() for one in modules}
    for one in modules:
        taken[one.pattern] |= set(one.layers)
    if all(layers == whole[pattern] for pattern, layers in taken.items()):
        return ()
    union = set().union(*taken.values())
    same = all("*" in pattern and layers == whole[pattern] & union for pattern, layers in taken.items())
    return tuple(sorted(union)) if same else None


def ends_of_names(chosen: Sequence[Group], census: Census) -> tuple[str, ...] | None:
    """The shortest ends of names that reach these modules and no others; None if no list can say it.

    A last segment that also begins another group's name (`dense`, `dense_4h_to_h`) gets its parent's name
    too: PEFT would match it rightly, but people and serving flags read it wrongly.
    """
    modules = [group for group in census.groups if not group.is_parameter]
    outside = [group for group in modules if group not in chosen]
    entries = set()
    for group in chosen:
        kin = [other for other in modules if _kind_of(other) != _kind_of(group)]
        entry = _entry(group, kin, outside) or _entry(group, [], outside)
        if not entry:
            return None
        entries.add(entry)
    return tuple(sorted(entry for entry in entries if not any_matches(entries - {entry}, entry)))


def _kind_of(group: Group) -> tuple[str, str]:
    """Encoder and decoder layers of a role go by one name; those of experts or towers do not."""
    return group.role, "layers" if group.scope in ("decoder", "encoder", "cross") else group.scope


def _entry(group: Group, kin: Sequence[Group], outside: Sequence[Group]) -> str:
    tail = tail_of(group)
    misleading = any(tail_of(other)[-1].startswith(f"{tail[-1]}_") for other in kin)
    shortest = 2 if misleading or group.scope == "shared_expert" else 1
    for length in range(min(shortest, len(tail)), len(tail) + 1):
        entry = ".".join(tail[-length:])
        if not any(matches(entry, other.pattern) for other in (*kin, *outside)):
            return entry
    return ""


def tail_of(group: Group) -> list[str]:
    """The segments after the layer number, which are the same in every layer."""
    segments = group.pattern.split(".")
    return segments[segments.index("*") + 1 :] if "*" in segments[:-1] else segments


def tensor_names(chosen: Sequence[Matched], census: Census) -> tuple[str, ...]:
    """Names of tensors: an end that no other tensor has, or every whole name where layers are left out."""
    chosen_groups = [one.group for one in chosen]
    outside = [group for group in census.groups if group not in chosen_groups and group.kind != "conv"]
    entries: set[str] = set()
    for one in chosen:
        pattern = one.group.parameter_name(one.pattern)
        tail = pattern.split(".")
        tail = tail[tail.index("*") + 1 :] if "*" in tail else tail
        entry = ".".join(tail[-3:])
        if one.layers != one.group.layers or any(
            matches(entry, other.parameter_name(other.pattern)) for other in outside
        ):
            entries.update(one.group.parameter_name(name) for name in one.names())
        else:
            entries.add(entry)
    return tuple(sorted(entries))


def regex_of(chosen: Sequence[Matched], census: Census) -> str:
    """One pattern for names in a part of the model, or in layers that differ between the groups."""
    whole: dict[str, set[int]] = {}
    for group in census.groups:
        whole.setdefault(group.pattern, set()).update(group.layers)
    taken: dict[str, set[int]] = {}
    for one in chosen:
        taken.setdefault(one.pattern, set()).update(one.layers)
    heads: dict[str, list[str]] = {}
    for pattern, layers in taken.items():
        head, star, tail = pattern.partition("*")
        number = r"\d+" if layers == whole[pattern] else f"({'|'.join(map(str, sorted(layers)))})"
        dot = r"\." if tail.startswith(".") else ""
        heads.setdefault(re.escape(head) + (number if star else "") + dot, []).append(
            re.escape(tail.removeprefix("."))
        )
    parts = [
        head + (f"({'|'.join(sorted(tails))})" if len(tails) > 1 else tails[0])
        for head, tails in heads.items()
    ]
    return parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"


def pattern_key(one: Matched, matched: Sequence[Matched]) -> str:
    """A key for PEFT's patterns that fits no other adapted group, so that the order of keys is free."""
    name = one.group.parameter_name(one.pattern) if one.as_parameter else one.pattern
    others = [
        other.group.parameter_name(other.pattern) if other.as_parameter else other.pattern
        for other in matched
        if (other.r, other.lora_alpha, other.group.experts) != (one.r, one.lora_alpha, one.group.experts)
    ]
    tail = name.split(".")
    tail = tail[tail.index("*") + 1 :] if "*" in tail else tail
    for length in range(min(2, len(tail)), len(tail) + 1):
        key = ".".join(tail[-length:])
        if not any(matches(key, other) for other in others):
            return key
    return re.escape(name).replace(r"\*", r"\d+")


def also_named(entries: Sequence[str], chosen: Sequence[Matched], census: Census) -> tuple[str, ...]:
    """Modules that the entries name too, but that are not meant."""
    meant = {name for one in chosen for name in one.names()}
    modules = [group for group in census.groups if not group.is_parameter]
    named = {name for group in modules for name in group.names() if any_matches(entries, name)}
    return tuple(sorted(named - meant))
