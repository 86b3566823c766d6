"""Custom target modules: selected layer groups, or names in PEFT's form, and the layers that they match.

A name without a match is reported with similar names of the model. Layers that no preset adapts must be
confirmed. Standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.contract.errors import SpecError
from workers.contract.hyperparameters import LIMITS
from workers.contract.specs import to_dict
from workers.target_modules.census import ROLES, Census, Group, Matched, equivalent_roles, format_layers
from workers.target_modules.peft_names import layer_suffix
from workers.target_modules.peft_rules import matches
from workers.target_modules.resolution import Resolution, to_peft_arguments, with_warnings

SIMILAR_NAMES = 3
MAX_ENTRIES = 100
# Plain names only: a user's regex must not run in a web process. `*` stands for the layer's number where a
# suffix is ambiguous, as in a model with an image tower.
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}|([A-Za-z0-9_]{1,100}\.){1,10}\*(\.[A-Za-z0-9_]{1,100}){1,10}")
# Divisors of the number of layers, counted from the top, so that the choice suits models of any depth.
LAYER_SHARES = {"all": 1, "top_half": 2, "top_quarter": 4}


@dataclass(frozen=True)
class Selection:
    """Custom target modules in PEFT's terms; `layers` is a key of `LAYER_SHARES`."""

    target_modules: tuple[str, ...] = ()
    layers: str = "all"
    layers_to_transform: tuple[int, ...] = ()
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Selection:
        """Rebuild from JSON, or from PEFT's `adapter_config.json`. Raises SpecError."""
        modules = values.get("target_modules") or ()
        if isinstance(modules, str):
            raise SpecError("target_modules", _not_plain_error(modules))
        layers = values.get("layers_to_transform") or ()
        chosen = cls(
            target_modules=tuple(_string_list("target_modules", modules)),
            layers=str(values.get("layers") or "all"),
            layers_to_transform=tuple(
                _layer_list("layers_to_transform", [layers] if isinstance(layers, int) else layers)
            ),
            rank_pattern=_number_by_name("rank_pattern", values.get("rank_pattern"), "r"),
            alpha_pattern=_number_by_name("alpha_pattern", values.get("alpha_pattern"), "lora_alpha"),
        )
        if chosen.layers not in LAYER_SHARES:
            raise SpecError("layers", f"`layers` must be one of {', '.join(LAYER_SHARES)}.")
        for name in ("target_parameters", "exclude_modules", "modules_to_save"):
            if values.get(name):
                raise SpecError(name, f"`{name}` is not supported. Name the layers to adapt instead.")
        return chosen

    @classmethod
    def from_groups(
        cls,
        patterns: Iterable[str],
        census: Census,
        *,
        layers: str = "all",
        layers_to_transform: Sequence[int] = (),
        ranks: Mapping[str, int] | None = None,
        alphas: Mapping[str, float] | None = None,
    ) -> Selection:
        """Return a selection of groups by the shortest names that match them and nothing else."""
        names = {pattern: shortest_entry(pattern, census) for pattern in patterns}
        return cls(
            target_modules=tuple(names.values()),
            layers=layers,
            layers_to_transform=tuple(sorted(set(layers_to_transform))),
            rank_pattern={names[key]: value for key, value in (ranks or {}).items() if key in names},
            alpha_pattern={names[key]: value for key, value in (alphas or {}).items() if key in names},
        )

    def resolve(self, census: Census) -> Resolution:
        """Return PEFT's arguments for the layers that the selection matches on one model."""
        layers = self.layers_to_transform
        if not layers and self.layers != "all":
            count = max(1, census.num_layers // LAYER_SHARES[self.layers])
            layers = tuple(range(census.num_layers - count, census.num_layers))
        return resolve_names(
            self.target_modules,
            census,
            layers=layers,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
        )


def resolve_names(
    entries: Sequence[str],
    census: Census,
    *,
    layers: Sequence[int] = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> Resolution:
    """Return PEFT's arguments for the layers that these names match on this model, or a refusal.

    A name may be a suffix, a whole name, or the old name of experts that are one tensor today.
    """
    ranks, alphas = rank_pattern or {}, alpha_pattern or {}
    problem = _entry_problem(entries, [*ranks, *alphas], layers, census)
    if problem:
        return Resolution(refusal=problem)
    matched = {entry: _matched_layers(entry, census, layers) for entry in (*entries, *ranks, *alphas)}
    groups = {group for entry in entries for group in matched[entry]}
    unmatched = [
        _unmatched_error(entry, census.groups) for entry in entries if not _matched_layers(entry, census)
    ]
    unmatched += [
        _unmatched_error(entry, groups or census.groups)
        for entry in (*ranks, *alphas)
        if not groups & set(matched[entry])
    ]
    if unmatched:
        return Resolution(refusal=" ".join(dict.fromkeys(unmatched)))
    absent = next((entry for entry in entries if not matched[entry]), None)
    if absent is not None:
        return Resolution(
            refusal=f"`{absent}` exists in none of the chosen layers ({format_layers(layers)})."
        )
    chosen = [
        Matched(
            group,
            tuple(
                sorted({layer for entry in entries for layer in matched[entry].get(group, ()) if layer >= 0})
            ),
            r=next((value for entry, value in ranks.items() if group in matched[entry]), 0),
            lora_alpha=next((value for entry, value in alphas.items() if group in matched[entry]), 0),
        )
        for group in census.groups
        if group in groups
    ]
    resolution = with_warnings(to_peft_arguments(chosen, census), census, layers=layers)
    return dataclasses.replace(
        resolution, confirmations=(*resolution.confirmations, *_ambiguities(entries, matched))
    )


def shortest_entry(pattern: str, census: Census) -> str:
    """Return the shortest suffix of a group's name that matches no other group; else its whole pattern."""
    tail = layer_suffix(pattern)
    for length in range(1, len(tail) + 1):
        entry = ".".join(tail[-length:])
        if {group.pattern for group in _matched_layers(entry, census)} == {pattern}:
            return entry
    return pattern


def _unmatched_error(entry: str, groups: Iterable[Group]) -> str:
    near = ", ".join(f"`{name}`" for name in similar_names(entry, groups))
    return f"`{entry}` matches no layer of this model. Near names: {near}."


def similar_names(entry: str, groups: Iterable[Group]) -> list[str]:
    """Return the most similar names of these groups, with as many segments as `entry`."""
    depth = min(3, entry.count(".") + 1)
    names = {".".join(layer_suffix(group.pattern)[-depth:]) for group in groups if group.kind != "conv"}
    return difflib.get_close_matches(entry, sorted(names), n=SIMILAR_NAMES, cutoff=0.0)


def _entry_problem(
    entries: Sequence[str], patterns: Sequence[str], layers: Sequence[int], census: Census
) -> str:
    if not entries:
        return "Name at least one layer to adapt."
    if len(entries) + len(patterns) > MAX_ENTRIES:
        return f"Too many names: give at most {MAX_ENTRIES}. The end of a name matches all layers."
    invalid = next((entry for entry in (*entries, *patterns) if not _NAME.fullmatch(entry)), None)
    if invalid is not None:
        return _not_plain_error(invalid)
    outside = sorted(set(layers) - set(range(census.num_layers)))
    if outside:
        return f"Layer {outside[0]} does not exist: this model has layers 0 to {census.num_layers - 1}."
    return ""


def _not_plain_error(entry: str) -> str:
    if entry == "all-linear":
        return "`all-linear` also adapts routers and image towers. Choose the preset Quality instead."
    return f"`{entry[:200]}` is not a plain name. Write the end of a layer's name, such as `o_proj`."


def _matched_layers(entry: str, census: Census, layers: Sequence[int] = ()) -> dict[Group, set[int]]:
    """Return the layers of each group that a name matches, directly or after PEFT's rewriting."""
    matched: dict[Group, set[int]] = {}
    last = entry.rpartition(".")[2]
    for group in census.groups:
        spellings = [entry]
        if group.is_parameter and last in census.rewrites:
            spellings.append(entry[: len(entry) - len(last)] + census.rewrites[last])
        for layer, name in zip(group.layers or (-1,), group.names(), strict=True):
            keys = {group.pattern} if "*" in entry else {name, group.parameter_name(name)}
            if (not layers or layer in layers) and any(
                matches(item, key) for item in spellings for key in keys
            ):
                matched.setdefault(group, set()).add(layer)
    return matched


def _ambiguities(entries: Sequence[str], matched: Mapping[str, Mapping[Group, set[int]]]) -> list[str]:
    """Return warnings on names that match layers of different roles, such as GPT-2's `c_proj`."""
    warnings = []
    for entry in entries:
        roles = list(dict.fromkeys(group.role for group in matched[entry]))
        if any(role not in equivalent_roles(roles[0]) for role in roles):
            warnings.append(
                f"`{entry}` matches layers of different kinds: {', '.join(ROLES[role] for role in roles)}."
            )
    return warnings


def _string_list(name: str, values: Any) -> list[str]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise SpecError(name, f"`{name}` must be a list of names.")
    return list(values)


def _layer_list(name: str, values: Any) -> list[int]:
    is_invalid = not isinstance(values, list | tuple) or any(
        type(value) is not int or value < 0 for value in values
    )
    if is_invalid:
        raise SpecError(name, f"`{name}` must be a list of layer numbers, counted from 0.")
    return sorted(set(values))


def _number_by_name(name: str, values: Any, limit: str) -> dict[str, Any]:
    low, high = LIMITS[limit]
    values = values or {}
    if not isinstance(values, dict):
        raise SpecError(name, f"`{name}` must give a number to each name.")
    for entry, value in values.items():
        is_number = isinstance(value, int) or (limit != "r" and isinstance(value, float))
        if isinstance(value, bool) or not is_number or not low <= value <= high:
            raise SpecError(name, f"`{name}` of `{entry}` must be a number between {low:g} and {high:g}.")
    return dict(values)
