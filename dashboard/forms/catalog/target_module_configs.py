"""The form of a project's own target modules: selected in a layer tree, or pasted as PEFT writes them."""

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
from dashboard.models.catalog.target_module_config import TEXT_LENGTH
from workers.contract.errors import SpecError
from workers.contract.hyperparameters import LIMITS
from workers.target_modules.census import PRESET_SCOPES, ROLES, SCOPES, Census, Group, format_layers
from workers.target_modules.custom import Selection
from workers.target_modules.resolution import Resolution

MAX_LENGTH = 64_000
PREVIEW_RANK = 16
FORMAT = "graftworks/target-module-config"
TICK, PASTE = "tick", "paste"
LAYERS = (
    ("all", gettext_lazy("All layers")),
    ("top_half", gettext_lazy("Top half")),
    ("top_quarter", gettext_lazy("Top quarter")),
    ("range", gettext_lazy("Selected layers")),
)
# Settings in an adapter_config.json that belong to the run, not to the target modules.
RUN_SETTINGS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")


@dataclass(frozen=True)
class LayerRow:
    """One row of the layer tree: all layers of one name."""

    pattern: str
    label: str
    scope: str
    modules: int
    layers: str
    shape: str
    parameters: int
    is_selectable: bool
    is_selected: bool
    r: str
    lora_alpha: str


class TargetModuleConfigForm(forms.Form):
    """Target modules on one base model. With `saving` a name is required too."""

    name = forms.CharField(
        label=gettext_lazy("Name"),
        max_length=120,
        error_messages={"required": gettext_lazy("Give it a name.")},
        help_text=gettext_lazy(
            "An existing name creates its next version. Runs keep the version that they started with."
        ),
    )
    description = forms.CharField(
        label=gettext_lazy("Description"),
        max_length=500,
        required=False,
        widget=forms.Textarea(attrs={"rows": 2}),
    )
    evidence = forms.CharField(
        label=gettext_lazy("Evidence"),
        max_length=TEXT_LENGTH,
        required=False,
        help_text=gettext_lazy("Why this choice: what was measured, on which data, with how many repeats."),
        widget=forms.Textarea(attrs={"rows": 3}),
    )
    how = forms.ChoiceField(
        label=gettext_lazy("Selection method"),
        choices=[
            (TICK, gettext_lazy("Select layers of this model")),
            (PASTE, gettext_lazy("Paste names or JSON")),
        ],
        initial=TICK,
        widget=forms.RadioSelect,
    )
    layers = forms.ChoiceField(
        label=gettext_lazy("Layer range"),
        choices=LAYERS,
        initial="all",
        required=False,
        widget=forms.RadioSelect,
    )
    range = forms.CharField(
        label=gettext_lazy("Layers"),
        max_length=400,
        required=False,
        help_text=gettext_lazy("Layer numbers from 0, for example 0-3, 7."),
    )
    pasted = forms.CharField(
        label=gettext_lazy("Names or JSON"),
        max_length=MAX_LENGTH,
        required=False,
        help_text=gettext_lazy(
            "Module names or suffixes as in PEFT's <code>target_modules</code>, an "
            "<code>adapter_config.json</code>, or a file exported from Graftworks."
        ),
        widget=forms.Textarea(attrs={"rows": 4, "spellcheck": "false"}),
    )
    file = forms.FileField(
        label=gettext_lazy("File"),
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
        # An uploaded file may bring the name.
        self.fields["name"].required = not self.is_bound
        self.census: Census = base_model.load_census()
        self.saving = saving
        self.resolution = Resolution()
        self.ignored_settings: dict[str, Any] = {}

    def clean(self) -> dict[str, Any]:
        """Build the selection and resolve it on the base model."""
        # For the page that shows the form again.
        self.fields["name"].required = True
        values = self.cleaned_data
        field = "pasted" if values.get("how") == PASTE else None
        try:
            selection = self._pasted() if field else self._selected_groups()
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

    def _selected_groups(self) -> Selection:
        known = {group.pattern for group in self.census.groups}
        patterns = [pattern for pattern in values_of(self.data, "groups") if pattern in known]
        if not patterns:
            raise SpecError("groups", _("Select at least one layer group."))
        ranks, alphas = (self._group_numbers(name, patterns) for name in ("r", "lora_alpha"))
        return Selection.from_groups(
            patterns, self.census, ranks=ranks, alphas=alphas, **self._chosen_layers()
        )

    def _group_numbers(self, name: str, patterns: Sequence[str]) -> dict[str, int]:
        """Return the groups' own values of `r` or `lora_alpha`."""
        texts = {pattern: self.data.get(f"{name}:{pattern}", "").strip() for pattern in patterns}
        return {pattern: self._group_number(name, pattern, text) for pattern, text in texts.items() if text}

    def _group_number(self, name: str, pattern: str, text: str) -> int:
        low, high = LIMITS[name]
        if not (text.isascii() and text.isdecimal() and len(text) < 9 and low <= int(text) <= high):
            raise SpecError(
                "groups",
                _("%(name)s of %(layers)s must be a whole number from %(low)d to %(high)d.")
                % {"name": name, "layers": pattern, "low": low, "high": high},
            )
        return int(text)

    def _chosen_layers(self) -> dict[str, Any]:
        chosen = self.cleaned_data.get("layers") or "all"
        if chosen != "range":
            return {"layers": chosen}
        return {
            "layers_to_transform": parse_layers(self.cleaned_data.get("range", ""), self.census.num_layers)
        }

    def _pasted(self) -> Selection:
        text = self.cleaned_data.get("pasted", "")
        file = self.cleaned_data.get("file")
        if file:
            if file.size > MAX_LENGTH:
                raise SpecError("file", _("The file is too large: at most 64,000 bytes."))
            text = file.read().decode(errors="replace")
        values = parse_selection(text)
        for name in ("name", "description", "evidence"):
            given = values.get(name)
            if not self.cleaned_data.get(name) and isinstance(given, str):
                self.cleaned_data[name] = require_storable(given)[: 120 if name == "name" else TEXT_LENGTH]
        numbers = {name: values.get(name) for name in RUN_SETTINGS}
        self.ignored_settings = {
            name: number for name, number in numbers.items() if isinstance(number, int | float) and number
        }
        return Selection.from_dict(values)

    def layer_rows(self) -> list[LayerRow]:
        """Return the layer tree with what is selected: the language model's own layers first."""
        selected = set(values_of(self.data, "groups") if self.is_bound else self.initial.get("groups", ()))
        own: Mapping[str, Any] = self.data if self.is_bound else self.initial.get("own", {})
        by_pattern: dict[str, list[Group]] = {}
        for group in self.census.groups:
            by_pattern.setdefault(group.pattern, []).append(group)
        order = list(ROLES)
        lines = sorted(
            by_pattern.values(),
            key=lambda groups: (is_outside_presets(groups[0]), order.index(groups[0].role)),
        )
        return [layer_row(groups, groups[0].pattern in selected, own) for groups in lines]


def layer_row(groups: Sequence[Group], is_selected: bool, own: Mapping[str, Any]) -> LayerRow:
    """Return the row of all groups of one name; layers of one name may differ in shape."""
    first = groups[0]
    layers = sorted({layer for group in groups for layer in group.layers})
    return LayerRow(
        pattern=first.pattern,
        label=ROLES[first.role],
        scope=SCOPES[first.scope] if is_outside_presets(first) else "",
        modules=sum(group.modules for group in groups),
        layers=format_layers(layers) if "*" in first.pattern else "",
        shape=", ".join(sorted({f"{group.d_in:,} → {group.d_out:,}" for group in groups})),
        parameters=sum(
            group.modules * max(1, PREVIEW_RANK // group.experts) * group.experts * (group.d_in + group.d_out)
            for group in groups
        ),
        is_selectable=first.kind != "conv",
        is_selected=is_selected,
        r=str(own.get(f"r:{first.pattern}", "")),
        lora_alpha=str(own.get(f"lora_alpha:{first.pattern}", "")),
    )


def is_outside_presets(group: Group) -> bool:
    """Return True if presets leave this part of the model alone."""
    return group.scope not in PRESET_SCOPES


def values_of(data: Any, name: str) -> list[str]:
    """Return all values of a name, from a request or a plain dict."""
    return list(data.getlist(name)) if hasattr(data, "getlist") else list(data.get(name, []))


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Return the layer numbers of "0-3, 7". Raises SpecError for layers that a model with `count` lacks."""
    layers: set[int] = set()
    for part in re.split(r"[,;\s]+", re.sub(r"\s*-\s*", "-", text.strip())):
        span = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if span is None:
            raise SpecError("range", _("Enter layer numbers such as 0-3, 7."))
        first, last = int(span[1]), int(span[2] or span[1])
        if first > last or last >= count:
            raise SpecError(
                "range",
                _("`%(part)s` is not a valid range: this model has layers 0 to %(last)d.")
                % {"part": part, "last": count - 1},
            )
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def parse_selection(text: str) -> dict[str, Any]:
    """Return the values of pasted text: JSON of PEFT or of an export, a list, or bare names."""
    text = text.strip()
    if not text:
        raise SpecError("pasted", _("Paste names or JSON, or choose a file."))
    if len(text) > MAX_LENGTH:
        raise SpecError("pasted", _("The text is too long: at most 64,000 characters."))
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.startswith("{"):
            line = getattr(error, "lineno", 1)
            raise SpecError("pasted", _("Invalid JSON in line %d.") % line) from error
        bare = re.sub(r"^\s*target_modules\s*[=:]", "", text)
        names = [name for name in re.split(r"[\s,;\"'\[\]()]+", bare) if name]
        return {"target_modules": names}
    if isinstance(values, str):
        values = [values]
    if isinstance(values, list):
        return {"target_modules": values}
    if not isinstance(values, dict):
        raise SpecError("pasted", _("Paste names or a JSON object."))
    return values


def require_storable(text: str) -> str:
    """Return the text. Raises SpecError if it holds characters that a database cannot store."""
    if "\0" in text or any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise SpecError("pasted", _("The text contains a character that cannot be stored. Remove it."))
    return text


def export_config(config: TargetModuleConfig) -> dict[str, Any]:
    """Return a config as the JSON that this form imports."""
    return {
        "format": FORMAT,
        "name": config.name,
        "version": config.version,
        "description": config.description,
        "evidence": config.evidence,
        **(config.selection or {}),
    }


def initial_from_config(config: TargetModuleConfig, base_model: BaseModel) -> dict[str, Any]:
    """Return the form's initial values from an earlier config or a preset on this model."""
    texts = {"description": config.description, "evidence": config.evidence}
    named = {"name": config.name, **texts} if config.project_id else {}
    resolution = config.resolve(base_model)
    if resolution.refusal:
        return {**named, "how": PASTE, "pasted": json.dumps(export_config(config), indent=2)}
    own: dict[str, Any] = {f"r:{item.pattern}": item.r for item in resolution.matched if item.r}
    own |= {
        f"lora_alpha:{item.pattern}": f"{item.lora_alpha:g}" for item in resolution.matched if item.lora_alpha
    }
    chosen = config.selection or {}
    exact = chosen.get("layers_to_transform") or []
    return {
        **named,
        "groups": [item.pattern for item in resolution.matched],
        "own": own,
        "layers": "range" if exact else chosen.get("layers", "all"),
        "range": format_layers(exact) if exact else "",
    }
