"""The form that saves a view of a page."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.models import SavedView


class SavedViewForm(forms.Form):
    """A page, a name, and the choices from the page's address."""

    page = forms.ChoiceField(
        choices=SavedView.Page.choices, error_messages={"invalid_choice": _("This page has no saved views.")}
    )
    name = forms.CharField(max_length=80, error_messages={"required": _("Give the view a name.")})
    query = forms.CharField(required=False, max_length=2000)

    def clean(self) -> dict[str, Any]:
        """Require runs for a comparison; a list may be saved without any choice."""
        values = super().clean() or self.cleaned_data
        if values.get("page") == SavedView.Page.COMPARE and not values.get("query"):
            self.add_error("query", _("Choose runs first, then save the comparison."))
        return values
