"""What people may type about base models: a folder from a list with its public name, or a hub id."""

from __future__ import annotations

import re
import uuid
from typing import Any

from django import forms
from django.core.validators import RegexValidator
from django.utils.translation import gettext_lazy as _

from dashboard.models import BaseModel, Project
from dashboard.models.base_model import model_folders

# The hub's own rule: letters, digits, - _ . in a name, perhaps after an owner; no path can look like it.
HUB_ID = re.compile(r"(?!.*(--|\.\.))(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*(?<![-.])(?<!\.git)", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]*", re.ASCII)


def _whole(pattern: re.Pattern[str], message: Any) -> RegexValidator:
    return RegexValidator(rf"\A{pattern.pattern}\Z", message, flags=re.ASCII)


hub_id_rule = _whole(HUB_ID, _("Write it as owner/name, for example HuggingFaceTB/SmolLM2-360M."))
revision_rule = _whole(REVISION, _("Give a branch, a tag or a commit, for example main."))


class FolderForm(forms.Form):
    """A model folder that the operator put in place. No path is typed: the folder is picked from a list."""

    folder = forms.ChoiceField(label=_("Folder"))
    name = forms.CharField(
        label=_("Name"), max_length=120, help_text=_("What people here call it, for example Qwen 3 0.6B.")
    )
    hub_id = forms.CharField(
        label=_("Public name or hub id"),
        max_length=96,
        validators=[hub_id_rule],
        help_text=_("Stands in every adapter as the name of its base model, so that others can find it."),
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False, initial=uuid.uuid4)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project
        field = self.fields["folder"]
        if isinstance(field, forms.ChoiceField):
            field.choices = [("", _("Choose a folder")), *((name, name) for name in model_folders())]

    def clean(self) -> dict[str, Any]:
        """A name that the project does not use yet."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if values.get("hub_id") and is_known(self.project, values["hub_id"], ""):
            self.add_error("hub_id", _("This project already has a base model of that name."))
        return values


class HubForm(forms.Form):
    """A model on the Hugging Face hub, downloaded by the inspect job."""

    hub_id = forms.CharField(
        label=_("Hub id"),
        max_length=96,
        validators=[hub_id_rule],
        help_text=_("As the hub writes it: owner/name."),
    )
    revision = forms.CharField(
        label=_("Revision"),
        max_length=100,
        required=False,
        validators=[revision_rule],
        help_text=_("A branch, tag or commit. Left empty, the newest commit is taken and kept."),
    )
    idempotency_key = forms.UUIDField(widget=forms.HiddenInput, required=False, initial=uuid.uuid4)

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.project = project

    def clean(self) -> dict[str, Any]:
        """A model that the project does not have yet."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if values.get("hub_id") and is_known(self.project, values["hub_id"], values.get("revision", "")):
            self.add_error("hub_id", _("This project already has that model at that revision."))
        return values


def is_known(project: Project, hub_id: str, revision: str) -> bool:
    """Whether the project already has this model; the database holds the same rule."""
    return BaseModel.objects.filter(project=project, hub_id=hub_id, revision=revision).exists()
