"""PEFT's matching rules in plain Python: the names that a set of arguments matches, and their ranks.

Follows PEFT 0.21 (`check_target_module_exists`, `get_pattern_key`, `_inject_parameters` and the rewriting of
old expert names), so that pages can show before a run what PEFT will do. A test compares it with PEFT on all
model families. Standard library only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from workers.target_modules.census import Census

# "...layers.3." and not "...layers.3.experts.7.": PEFT takes the first number that follows two names.
_LAYER = re.compile(r".*?\.[^.]*\.(?P<layer>\d+)\.")


@dataclass(frozen=True)
class Arguments:
    """PEFT's arguments that place an adapter. `target_regex` is `target_modules` as one string."""

    target_modules: tuple[str, ...] = ()
    target_regex: str = ""
    target_parameters: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] = ()
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that are set, as PEFT's LoraConfig takes them."""
        values: dict[str, Any] = {"target_modules": self.target_regex or sorted(self.target_modules)}
        for name in ("target_parameters", "exclude_modules", "layers_to_transform"):
            if getattr(self, name):
                values[name] = sorted(getattr(self, name))
        for name in ("rank_pattern", "alpha_pattern"):
            if getattr(self, name):
                values[name] = dict(getattr(self, name))
        return values


class NotConvertible(ValueError):
    """PEFT refuses these names on this model type."""


def matches(entry: str, key: str) -> bool:
    """Apply PEFT's rule for one entry of a list: the whole name, or its end after a dot."""
    return key == entry or key.endswith("." + entry)


def matches_any(entries: Iterable[str], key: str) -> bool:
    """Return True if one of the entries matches the name."""
    return any(matches(entry, key) for entry in entries)


def matched_names(arguments: Arguments, census: Census, r: int) -> dict[str, int]:
    """Return the rank of every module and tensor that PEFT adapts with these arguments, by name."""
    arguments = rewrite_expert_names(arguments, census, r)
    ranks = {}
    for group in census.groups:
        if group.is_parameter:
            continue
        for name in group.names():
            if _matches_module(arguments, name):
                ranks[name] = _pattern_value(arguments.rank_pattern, name, r)
    for group in census.groups:
        if group.kind == "conv":
            continue
        for name in group.names():
            tensor = group.parameter_name(name)
            if matches_any(arguments.target_parameters, tensor):
                ranks[tensor] = _pattern_value(arguments.rank_pattern, tensor, r)
    return ranks


def rewrite_expert_names(arguments: Arguments, census: Census, r: int) -> Arguments:
    """Return the arguments after PEFT has replaced old expert names by those of today's fused tensors."""
    if not census.rewrites:
        return arguments
    modules = arguments.target_modules
    if arguments.target_regex:
        modules = _leaf_names(arguments.target_regex, census)
        if not modules:
            return arguments
    kept, parameters = [], set(arguments.target_parameters)
    fused: dict[str, set[str]] = {}
    for entry in modules:
        old = next((old for old in census.rewrites if matches(old, entry)), None)
        if old is None:
            kept.append(entry)
        else:
            parameters.add(census.rewrites[old])
            fused.setdefault(census.rewrites[old], set()).add(old)
    ranks = dict(arguments.rank_pattern)
    for new in set(census.rewrites.values()):
        halves = {old for old, name in census.rewrites.items() if name == new}
        given = fused.get(new, set())
        if len(halves) > 1 and given:
            if given != halves:
                missing = ", ".join(sorted(halves - given))
                raise NotConvertible(f"{', '.join(sorted(given))} needs {missing} too: they are one tensor.")
            ranks[rf".*\.{re.escape(new)}"] = r * len(halves)
    return dataclasses.replace(
        arguments,
        target_modules=tuple(kept),
        target_regex="",
        target_parameters=tuple(sorted(parameters)),
        rank_pattern=ranks,
    )


def _matches_module(arguments: Arguments, name: str) -> bool:
    if matches_any(arguments.exclude_modules, name):
        return False
    if arguments.target_regex:
        return re.fullmatch(arguments.target_regex, name) is not None
    if not matches_any(arguments.target_modules, name):
        return False
    if not arguments.layers_to_transform:
        return True
    layer = _LAYER.match(name)
    return layer is not None and int(layer["layer"]) in arguments.layers_to_transform


def _pattern_value(patterns: dict[str, int], name: str, default: int) -> int:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _leaf_names(regex: str, census: Census) -> tuple[str, ...]:
    """Return the last segments of all names that a regex matches, to which PEFT reduces it for rewriting."""
    leaves = set()
    for group in census.groups:
        for name in group.names():
            for key in {name, group.parameter_name(name)}:
                if re.fullmatch(regex, key):
                    leaves.add(key.rpartition(".")[2])
            container = name.rpartition(".")[0]
            for old, new in census.rewrites.items():
                if matches(new, name) and re.fullmatch(regex, f"{container}.{old}"):
                    leaves.add(old)
    return tuple(sorted(leaves))
