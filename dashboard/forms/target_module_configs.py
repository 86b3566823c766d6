"""A project's own choice of layers: ticked in the tree of a model, or pasted as PEFT writes it.

Parses and checks, and says what the choice means; saving is the view's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models import BaseModel, TargetModuleConfig
from dashboard.models.target_module_config import TEXT_LENGTH
from workers.census import PRESET_SCOPES, ROLES, SCOPES, Census, Group, spans
from workers.errors import SpecError
from workers.hyperparameters import LIMITS
from workers.selections import Selection
from workers.targets import Resolution

LONGEST = 64_000
RANK = 16
FORMAT = "graftworks/target-module-config"
TICK, PASTE = "tick", "paste"
LAYERS = (
    ("all", gettext_lazy("All layers")),
    ("top_half", gettext_lazy("The upper half")),
    ("top_quarter", gettext_lazy("The upper quarter")),
    ("range", gettext_lazy("These layers")),
)
# What an adapter_config.json says of the run, not of where the adapter sits.
RUN_SETTINGS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")


@dataclass(frozen=True)
class Branch:
    """One line of the tree: layers of one name."""

    pattern: str
    label: str
    part: str
    modules: int
    layers: str
    shape: str
    parameters: int
    is_possible: bool
    is_ticked: bool
    r: str
    lora_alpha: str


class TargetModuleConfigForm(forms.Form):
    """Where the adapter sits, on one base model. `saving` asks for a name too."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=120,
        error_messages={"required": gettext_lazy("Give it a name.")},
        help_text=gettext_lazy(
            "Under a name that this project has already it becomes the next version; runs keep theirs."
        ),
    )
    description = forms.CharField(
        label=gettext_lazy("Description"),
        max_length=500,
        required=False,
        widget=forms.Textarea(attrs={"rows": 2}),
    )
    evidence = forms.CharField(
        label=gettext_lazy("Why this choice (evidence)"),
        max_length=TEXT_LENGTH,
        required=False,
        help_text=gettext_lazy("What was measured, on which data, with how many repeats."),
        widget=forms.Textarea(attrs={"rows": 3}),
    )
    how = forms.ChoiceField(
        label=gettext_lazy("How to choose"),
        choices=[
            (TICK, gettext_lazy("Tick layers of this model")),
            (PASTE, gettext_lazy("Paste names, or a file")),
        ],
        initial=TICK,
        widget=forms.RadioSelect,
    )
    layers = forms.ChoiceField(
        label=gettext_lazy("In which layers"),
        choices=LAYERS,
        initial="all",
        required=False,
        widget=forms.RadioSelect,
    )
    range = forms.CharField(
        label=gettext_lazy("Layers"),
        max_length=400,
        required=False,
        help_text=gettext_lazy("Counted from 0, such as 0-3, 7."),
    )
    pasted = forms.CharField(
        label=gettext_lazy("Names or JSON"),
        max_length=LONGEST,
        required=False,
        help_text=gettext_lazy(
            "Ends of names, as PEFT's <code>target_modules</code> takes them; a whole "
            "<code>adapter_config.json</code>; or what was exported here."
        ),
        widget=forms.Textarea(attrs={"rows": 4, "spellcheck": "false"}),
    )
    file = forms.FileField(
        label=gettext_lazy("Or a file"),
        required=False,
        widget=forms.FileInput(attrs={"accept": ".json,application/json"}),
    )

    def __init__(
        self,
        data: Any = None,
        files: Any = None,
        *,
        base_model: BaseModel,
        saving: bool = False,
        initial: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data, files, initial=initial)
        # Neither a look nor a file that brings its name asks for one.
        self.fields["name"].required = not self.is_bound
        self.census: Census = base_model.load_census()
        self.saving = saving
        self.resolution = Resolution()
        self.left_out: dict[str, Any] = {}

    def clean(self) -> dict[str, Any]:
        """Build the selection, and see what it reaches."""
        values = self.cleaned_data
        field = "pasted" if values.get("how") == PASTE else None
        try:
            selection = self._pasted() if field else self._ticked()
        except SpecError as error:
            self.resolution = Resolution(refusal=error.message)
            self.add_error(field or ("range" if error.field == "range" else None), error.message)
            return values
        values["selection"] = selection
        self.resolution = selection.resolve(self.census)
        if self.resolution.refusal:
            self.add_error(field, self.resolution.refusal)
        if self.saving and "name" not in self.errors:
            self._check_name()
        return values

    def _check_name(self) -> None:
        name = self.cleaned_data["name"] = " ".join(self.cleaned_data["name"].split())
        if not name:
            self.add_error("name", _("Give it a name."))
        elif TargetModuleConfig.is_reserved(name):
            self.add_error("name", _("A preset has this name. Choose another."))

    def _ticked(self) -> Selection:
        known = {group.pattern for group in self.census.groups}
        patterns = [pattern for pattern in listed(self.data, "groups") if pattern in known]
        if not patterns:
            raise SpecError("groups", _("Tick at least one line."))
        ranks = {key: self._own("r", key) for key in patterns if self.data.get(f"r:{key}", "").strip()}
        alphas = {
            key: self._own("lora_alpha", key)
            for key in patterns
            if self.data.get(f"lora_alpha:{key}", "").strip()
        }
        return Selection.ticked(patterns, self.census, ranks=ranks, alphas=alphas, **self._chosen_layers())

    def _own(self, name: str, pattern: str) -> int:
        low, high = LIMITS[name]
        text = self.data.get(f"{name}:{pattern}", "").strip()
        if not (text.isascii() and text.isdecimal() and len(text) < 9 and low <= int(text) <= high):
            raise SpecError(
                "groups",
                _("%(name)s of %(layers)s: enter a whole number from %(low)d to %(high)d.")
                % {"name": name, "layers": pattern, "low": low, "high": high},
            )
        return int(text)

    def _chosen_layers(self) -> dict[str, Any]:
        chosen = self.cleaned_data.get("layers") or "all"
        if chosen != "range":
            return {"layers": chosen}
        return {"layers_to_transform": layers_in(self.cleaned_data.get("range", ""), self.census.num_layers)}

    def _pasted(self) -> Selection:
        text = self.cleaned_data.get("pasted", "")
        file = self.cleaned_data.get("file")
        if file:
            if file.size > LONGEST:
                raise SpecError("file", _("This file is too long: at most 64,000 bytes."))
            text = file.read().decode(errors="replace")
        found = choice_in(text)
        for name in ("name", "description", "evidence"):
            given = found.get(name)
            if not self.cleaned_data.get(name) and isinstance(given, str):
                self.cleaned_data[name] = storable(given)[: 120 if name == "name" else TEXT_LENGTH]
        self.left_out = {
            name: found[name]
            for name in RUN_SETTINGS
            if isinstance(found.get(name), int | float) and found[name]
        }
        return Selection.from_dict(found)

    def branches(self) -> list[Branch]:
        """The tree, with what is ticked: the language model's own layers first."""
        ticked = set(listed(self.data, "groups") if self.is_bound else self.initial.get("groups", ()))
        own: Mapping[str, Any] = self.data if self.is_bound else self.initial.get("own", {})
        found: dict[str, list[Group]] = {}
        for group in self.census.groups:
            found.setdefault(group.pattern, []).append(group)
        order = list(ROLES)
        lines = sorted(found.values(), key=lambda all_: (is_apart(all_[0]), order.index(all_[0].role)))
        return [branch(groups, groups[0].pattern in ticked, own) for groups in lines]


def branch(groups: Sequence[Group], is_ticked: bool, own: Mapping[str, Any]) -> Branch:
    """The line of all groups of one name; layers of one name may differ in shape."""
    first = groups[0]
    layers = sorted({layer for group in groups for layer in group.layers})
    return Branch(
        pattern=first.pattern,
        label=ROLES[first.role],
        part=SCOPES[first.scope] if is_apart(first) else "",
        modules=sum(group.modules for group in groups),
        layers=spans(layers) if "*" in first.pattern else "",
        shape=", ".join(sorted({f"{group.d_in:,} → {group.d_out:,}" for group in groups})),
        parameters=sum(
            group.modules * max(1, RANK // group.experts) * group.experts * (group.d_in + group.d_out)
            for group in groups
        ),
        is_possible=first.kind != "conv",
        is_ticked=is_ticked,
        r=str(own.get(f"r:{first.pattern}", "")),
        lora_alpha=str(own.get(f"lora_alpha:{first.pattern}", "")),
    )


def is_apart(group: Group) -> bool:
    """Whether no preset would touch it because of where it stands."""
    return group.scope not in PRESET_SCOPES


def listed(data: Any, name: str) -> list[str]:
    """All values of a name, from a request or from a plain dict."""
    return list(data.getlist(name)) if hasattr(data, "getlist") else list(data.get(name, []))


def layers_in(text: str, count: int) -> tuple[int, ...]:
    """Layer numbers from "0-3, 7"; SpecError says what is no layer of a model with `count` of them."""
    found: set[int] = set()
    for part in re.split(r"[,;\s]+", re.sub(r"\s*-\s*", "-", text.strip())):
        span = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if span is None:
            raise SpecError("range", _("Write layer numbers such as 0-3, 7."))
        first, last = int(span[1]), int(span[2] or span[1])
        if first > last or last >= count:
            raise SpecError(
                "range",
                _("`%(part)s` is no span of layers: this model has 0 to %(last)d.")
                % {"part": part, "last": count - 1},
            )
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def choice_in(text: str) -> dict[str, Any]:
    """What pasted text says: JSON of PEFT or of an export, a list, or bare names."""
    text = text.strip()
    if not text:
        raise SpecError("pasted", _("Paste names or JSON, or choose a file."))
    if len(text) > LONGEST:
        raise SpecError("pasted", _("This is too long: at most 64,000 characters."))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.startswith("{"):
            line = getattr(error, "lineno", 1)
            raise SpecError("pasted", _("This is no valid JSON: look at line %d.") % line) from error
        bare = re.sub(r"^\s*target_modules\s*[=:]", "", text)
        names = [name for name in re.split(r"[\s,;\"'\[\]()]+", bare) if name]
        return {"target_modules": names}
    if isinstance(found, str):
        found = [found]
    if isinstance(found, list):
        return {"target_modules": found}
    if not isinstance(found, dict):
        raise SpecError("pasted", _("This is neither names nor a JSON object."))
    return found


def storable(text: str) -> str:
    """The text as a database keeps it; SpecError where none can."""
    if "\0" in text or any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise SpecError("pasted", _("A text in it holds a character that cannot be stored. Remove it."))
    return text


def exported(config: TargetModuleConfig) -> dict[str, Any]:
    """A choice as a file that this form, or another installation's, takes back."""
    return {
        "format": FORMAT,
        "name": config.name,
        "version": config.version,
        "description": config.description,
        "evidence": config.evidence,
        **(config.selection or {}),
    }


def initial_from(config: TargetModuleConfig, base_model: BaseModel) -> dict[str, Any]:
    """The form as an earlier choice, or a preset, would have filled it in on this model."""
    texts = {"description": config.description, "evidence": config.evidence}
    named = {"name": config.name, **texts} if config.project_id else {}
    found = config.resolve(base_model)
    if found.refusal:
        return {**named, "how": PASTE, "pasted": json.dumps(exported(config), indent=2)}
    own: dict[str, Any] = {f"r:{one.pattern}": one.r for one in found.matched if one.r}
    own |= {f"lora_alpha:{one.pattern}": f"{one.lora_alpha:g}" for one in found.matched if one.lora_alpha}
    chosen = config.selection or {}
    exact = chosen.get("layers_to_transform") or []
    return {
        **named,
        "groups": [one.pattern for one in found.matched],
        "own": own,
        "layers": "range" if exact else chosen.get("layers", "all"),
        "range": spans(exact) if exact else "",
    }
