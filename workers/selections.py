"""Choices that people make themselves: ticked groups, or names as PEFT takes them, and what they reach.

A name that reaches nothing is reported with its nearest real names, and what no preset would touch has to be
confirmed. Where PEFT alone would do something else in silence, the answer still adapts what the names say.
Standard library only: knows no rows and no tensors.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.census import ROLES, Census, Group, Matched, spans, stand_ins
from workers.errors import SpecError
from workers.hyperparameters import LIMITS
from workers.matching import Arguments, NotConvertible, attached, matches
from workers.spelling import tail_of
from workers.targets import Resolution, Unmatched, to_peft_arguments, with_warnings

NEAR_NAMES = 3
MAX_ENTRIES = 100
# What a name may consist of. Anything else is a pattern, and patterns of people are not run in a web process.
# `*` may stand for the layer's number: where ends of names are not enough, as in a model with an image tower.
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}|([A-Za-z0-9_]{1,100}\.){1,10}\*(\.[A-Za-z0-9_]{1,100}){1,10}")
# Shares of a model's layers that can be chosen on a model of any depth, counted from the top.
LAYER_SHARES = {"all": 1, "top_half": 2, "top_quarter": 4}


@dataclass(frozen=True)
class Selection:
    """A choice of one's own, in PEFT's words; `layers` names a share that holds on models of any depth."""

    target_modules: tuple[str, ...] = ()
    layers: str = "all"
    layers_to_transform: tuple[int, ...] = ()
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Selection:
        """Rebuild from JSON, or from PEFT's `adapter_config.json`; SpecError says what cannot be taken."""
        modules = values.get("target_modules") or ()
        if isinstance(modules, str):
            raise SpecError("target_modules", _no_pattern(modules))
        layers = values.get("layers_to_transform") or ()
        chosen = cls(
            target_modules=tuple(_texts("target_modules", modules)),
            layers=str(values.get("layers") or "all"),
            layers_to_transform=tuple(
                _wholes("layers_to_transform", [layers] if isinstance(layers, int) else layers)
            ),
            rank_pattern=_numbers("rank_pattern", values.get("rank_pattern"), "r"),
            alpha_pattern=_numbers("alpha_pattern", values.get("alpha_pattern"), "lora_alpha"),
        )
        if chosen.layers not in LAYER_SHARES:
            raise SpecError("layers", f"`layers` must be one of {', '.join(LAYER_SHARES)}.")
        for name in ("target_parameters", "exclude_modules", "modules_to_save"):
            if values.get(name):
                raise SpecError(name, f"`{name}` cannot be taken over. Name the layers to adapt instead.")
        return chosen

    @classmethod
    def ticked(
        cls,
        patterns: Iterable[str],
        census: Census,
        *,
        layers: str = "all",
        layers_to_transform: Sequence[int] = (),
        ranks: Mapping[str, int] | None = None,
        alphas: Mapping[str, float] | None = None,
    ) -> Selection:
        """Groups chosen by their patterns, in the shortest names that reach them and nothing else."""
        names = {pattern: entry_of(pattern, census) for pattern in patterns}
        return cls(
            target_modules=tuple(names.values()),
            layers=layers,
            layers_to_transform=tuple(sorted(set(layers_to_transform))),
            rank_pattern={names[key]: value for key, value in (ranks or {}).items() if key in names},
            alpha_pattern={names[key]: value for key, value in (alphas or {}).items() if key in names},
        )

    def chosen_layers(self, census: Census) -> tuple[int, ...]:
        """The layers on this model; () stands for all of them."""
        if self.layers_to_transform or self.layers == "all":
            return self.layers_to_transform
        count = max(1, census.num_layers // LAYER_SHARES[self.layers])
        return tuple(range(census.num_layers - count, census.num_layers))

    def resolve(self, census: Census) -> Resolution:
        """What it means on one model."""
        return explain(
            self.target_modules,
            census,
            layers=self.chosen_layers(census),
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
        )


def pick(
    patterns: Iterable[str],
    census: Census,
    *,
    layers: Sequence[int] = (),
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
) -> Resolution:
    """What groups ticked by their patterns mean, in all layers or in some, with ranks of their own."""
    wanted = set(patterns)
    unknown = sorted(wanted - {group.pattern for group in census.groups})
    if unknown:
        missing = tuple(Unmatched(pattern, near(pattern, census)) for pattern in unknown)
        return _unmatched(missing, census)
    chosen = [
        Matched(
            group,
            tuple(layer for layer in group.layers if not layers or layer in layers),
            r=(ranks or {}).get(group.pattern, 0),
            lora_alpha=(alphas or {}).get(group.pattern, 0),
        )
        for group in census.groups
        if group.pattern in wanted
    ]
    return with_warnings(
        to_peft_arguments([one for one in chosen if one.modules], census), census, layers=layers
    )


def explain(
    entries: Sequence[str],
    census: Census,
    *,
    layers: Sequence[int] = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
) -> Resolution:
    """What names written for PEFT reach on this model, and which of them reach nothing.

    They may be ends of names, whole names, or the older ones of today's fused experts.
    """
    ranks, alphas = rank_pattern or {}, alpha_pattern or {}
    problem = _entry_problem(entries, [*ranks, *alphas], layers, census)
    if problem:
        return Resolution(layers_total=census.num_layers, refusal=problem)
    reached = {entry: _reached(entry, census, layers) for entry in (*entries, *ranks, *alphas)}
    hits = {group for entry in entries for group in reached[entry]}
    missing = [Unmatched(entry, near(entry, census)) for entry in entries if not _reached(entry, census)]
    missing += [
        Unmatched(entry, near(entry, census, hits))
        for entry in (*ranks, *alphas)
        if not hits & set(reached[entry])
    ]
    absent = next((entry for entry in entries if not reached[entry]), None)
    if missing:
        return _unmatched(tuple(dict.fromkeys(missing)), census)
    if absent is not None:
        problem = f"`{absent}` exists in none of the chosen layers ({spans(layers)})."
        return Resolution(layers_total=census.num_layers, refusal=problem)
    chosen = [
        Matched(
            group,
            tuple(sorted({at for entry in entries for at in reached[entry].get(group, ()) if at >= 0})),
            r=next((value for entry, value in ranks.items() if group in reached[entry]), 0),
            lora_alpha=next((value for entry, value in alphas.items() if group in reached[entry]), 0),
        )
        for group in census.groups
        if group in hits
    ]
    answer = with_warnings(to_peft_arguments(chosen, census), census, layers=layers)
    return dataclasses.replace(
        answer,
        notes=(*answer.notes, *_peft_alone(entries, layers, answer, census)),
        confirmations=(*answer.confirmations, *_ambiguities(entries, reached)),
    )


def entry_of(pattern: str, census: Census) -> str:
    """The shortest end of a group's name that reaches no other group; else its whole pattern."""
    tail = next(tail_of(group) for group in census.groups if group.pattern == pattern)
    for length in range(1, len(tail) + 1):
        entry = ".".join(tail[-length:])
        if {group.pattern for group in _reached(entry, census)} == {pattern}:
            return entry
    return pattern


def near(entry: str, census: Census, groups: Iterable[Group] | None = None) -> tuple[str, ...]:
    """Names of this model that look most like `entry`, with as many segments as it has."""
    depth = min(3, entry.count(".") + 1)
    names = {".".join(tail_of(group)[-depth:]) for group in groups or census.groups if group.kind != "conv"}
    return tuple(difflib.get_close_matches(entry, sorted(names), n=NEAR_NAMES, cutoff=0.0))


def _unmatched(missing: tuple[Unmatched, ...], census: Census) -> Resolution:
    refusal = " ".join(one.sentence for one in missing)
    return Resolution(layers_total=census.num_layers, unmatched=missing, refusal=refusal)


def _entry_problem(
    entries: Sequence[str], patterns: Sequence[str], layers: Sequence[int], census: Census
) -> str:
    if not entries:
        return "Name at least one layer to adapt."
    if len(entries) + len(patterns) > MAX_ENTRIES:
        return (
            f"These are too many names. Give at most {MAX_ENTRIES}: the end of a name stands for all layers."
        )
    strange = next((entry for entry in (*entries, *patterns) if not _NAME.fullmatch(entry)), None)
    if strange is not None:
        return _no_pattern(strange)
    outside = sorted(set(layers) - set(range(census.num_layers)))
    if outside:
        return f"Layer {outside[0]} does not exist: this model has layers 0 to {census.num_layers - 1}."
    return ""


def _no_pattern(entry: str) -> str:
    if entry == "all-linear":
        return "`all-linear` also takes routers and image towers. Choose the preset Quality instead."
    return f"`{entry[:200]}` is no plain name. Write the end of a layer's name, such as `o_proj`."


def _reached(entry: str, census: Census, layers: Sequence[int] = ()) -> dict[Group, set[int]]:
    """The layers of each group that a name reaches, by today's names and by those that PEFT rewrites."""
    found: dict[Group, set[int]] = {}
    last = entry.rpartition(".")[2]
    for group in census.groups:
        spelled = [entry]
        if group.is_parameter and last in census.rewrites:
            spelled.append(entry[: len(entry) - len(last)] + census.rewrites[last])
        for layer, name in zip(group.layers or (-1,), group.names(), strict=True):
            keys = {group.pattern} if "*" in entry else {name, group.parameter_name(name)}
            if (not layers or layer in layers) and any(matches(one, key) for one in spelled for key in keys):
                found.setdefault(group, set()).add(layer)
    return found


def _ambiguities(entries: Sequence[str], reached: Mapping[str, Mapping[Group, set[int]]]) -> list[str]:
    """Names that reach layers of different roles, such as GPT-2's `c_proj`."""
    found = []
    for entry in entries:
        roles = list(dict.fromkeys(group.role for group in reached[entry]))
        if any(role not in stand_ins(roles[0]) for role in roles):
            found.append(
                f"`{entry}` reaches layers of different kinds: {', '.join(ROLES[role] for role in roles)}."
            )
    return found


def _peft_alone(
    entries: Sequence[str], layers: Sequence[int], answer: Resolution, census: Census
) -> list[str]:
    """A note where PEFT, given the names as they stand, would adapt other layers."""
    if answer.refusal or any("*" in entry for entry in entries):
        return []
    raw = Arguments(target_modules=tuple(entries), layers_to_transform=tuple(layers))
    promised = sum(one.modules for one in answer.matched)
    try:
        alone = set(attached(raw, census, 1))
    except NotConvertible:
        return [
            "PEFT itself refuses these names on this model; Graftworks sends it others with that meaning."
        ]
    if alone == set(answer.names()):
        return []
    return [
        f"Given to PEFT as they stand, these names would adapt {len(alone)} modules, not the {promised} that "
        "they name here; Graftworks sends it exact ones."
    ]


def _texts(name: str, values: Any) -> list[str]:
    if not isinstance(values, list | tuple | set) or not all(isinstance(value, str) for value in values):
        raise SpecError(name, f"`{name}` must be a list of names.")
    return sorted(values) if isinstance(values, set) else list(values)


def _wholes(name: str, values: Any) -> list[int]:
    wrong = not isinstance(values, list | tuple) or any(
        type(value) is not int or value < 0 for value in values
    )
    if wrong:
        raise SpecError(name, f"`{name}` must be a list of layer numbers, counted from 0.")
    return sorted(set(values))


def _numbers(name: str, values: Any, limit: str) -> dict[str, Any]:
    low, high = LIMITS[limit]
    values = values or {}
    if not isinstance(values, dict):
        raise SpecError(name, f"`{name}` must give a number to each name.")
    for entry, value in values.items():
        whole = isinstance(value, int) or (limit != "r" and isinstance(value, float))
        if isinstance(value, bool) or not whole or not low <= value <= high:
            raise SpecError(name, f"`{name}` of `{entry}` must be a number between {low:g} and {high:g}.")
    return dict(values)
