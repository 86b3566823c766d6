"""Forms that add a base model: a folder from a list with its public name, or a hub id."""

from __future__ import annotations

import re
import uuid
from typing import Any

from django import forms
from django.core.validators import RegexValidator
from django.utils.translation import gettext_lazy as _

from dashboard.models import BaseModel, Project
from dashboard.models.catalog.base_model import model_folders

# The hub's own rule: letters, digits and - _ . in a name, optionally after an owner. No path matches it.
HUB_ID = re.compile(r"(?!.*(--|\.\.))(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(?<![-.])(?<!\.git)", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]*", re.ASCII)


def _full_match(pattern: re.Pattern[str], message: Any) -> RegexValidator:
    return RegexValidator(rf"\A{pattern.pattern}\Z", message, flags=re.ASCII)


hub_id_rule = _full_match(HUB_ID, _("Write it as owner/name, for example HuggingFaceTB/SmolLM2-360M."))
revision_rule = _full_match(REVISION, _("Give a branch, a tag or a commit, for example main."))


class FolderForm(forms.Form):
    """A model folder under DATA_DIR/models, chosen from a list."""

    folder = forms.ChoiceField(label=_("Folder"))
    name = forms.CharField(
        label=_("Name"), max_length=120, help_text=_("The name on pages, for example Qwen 3 0.6B.")
    )
    hub_id = forms.CharField(
        label=_("Public name or hub id"),
        max_length=96,
        validators=[hub_id_rule],
        help_text=_("Every adapter states this as its base model, so that others can find the model."),
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False, initial=uuid.uuid4)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        field = self.fields["folder"]
        if isinstance(field, forms.ChoiceField):
            field.choices = [("", _("Choose a folder")), *((name, name) for name in model_folders())]

    def clean(self) -> dict[str, Any]:
        """Refuse a public name that the project already uses."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if values.get("hub_id") and is_known(self.project, values["hub_id"], ""):
            self.add_error("hub_id", _("This project already has a base model of that name."))
        return values


class HubForm(forms.Form):
    """A model on the Hugging Face Hub, downloaded by the inspect job."""

    hub_id = forms.CharField(
        label=_("Hub id"),
        max_length=96,
        validators=[hub_id_rule],
        help_text=_("Format: owner/name."),
    )
    revision = forms.CharField(
        label=_("Revision"),
        max_length=100,
        required=False,
        validators=[revision_rule],
        help_text=_("A branch, tag or commit. Leave empty to pin the newest commit."),
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False, initial=uuid.uuid4)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project

    def clean(self) -> dict[str, Any]:
        """Refuse a model that the project already has."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if values.get("hub_id") and is_known(self.project, values["hub_id"], values.get("revision", "")):
            self.add_error("hub_id", _("This project already has that model at that revision."))
        return values


def is_known(project: Project, hub_id: str, revision: str) -> bool:
    """Return whether the project already has this model; the database enforces the same rule."""
    return BaseModel.objects.filter(project=project, hub_id=hub_id, revision=revision).exists()
