"""A push of an adapter to the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.models import Adapter, HubPush
from dashboard.models.adapters.export import GGUF, gguf_refusal
from workers.contract.specs import REPOSITORY


class PushForm(forms.Form):
    """Repository, what is uploaded, and the token, which no page shows again."""

    repository = forms.CharField(
        label=_("Repository"),
        max_length=200,
        help_text=_("Owner and name, such as team/triage. It is created if it does not exist."),
    )
    format = forms.ChoiceField(label=_("Upload"), choices=HubPush.Format.choices)
    token = forms.CharField(
        label=_("Access token"),
        max_length=200,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text=_("A token that may write there. It is stored encrypted until the push ends, then erased."),
    )
    private = forms.BooleanField(label=_("Private repository"), required=False, initial=True)

    def __init__(self, adapter: Adapter, data: Any = None) -> None:
        super().__init__(data, auto_id="push_%s")
        field: Any = self.fields["format"]
        if gguf_refusal(adapter):
            field.choices = [(value, label) for value, label in field.choices if not value.startswith(GGUF)]

    def clean_repository(self) -> str:
        """Refuse everything but an owner and a name."""
        repository = str(self.cleaned_data["repository"])
        if not REPOSITORY.fullmatch(repository):
            raise forms.ValidationError(_("Enter an owner and a name, such as team/triage."))
        return repository

    def clean_token(self) -> str:
        """Refuse what no header can carry."""
        token = str(self.cleaned_data["token"])
        if not token.isascii() or not token.isprintable() or " " in token:
            raise forms.ValidationError(_("This is no access token. Copy it from the hub's settings."))
        return token
