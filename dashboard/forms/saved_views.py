"""Naming a comparison to see it again."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _


class SavedViewForm(forms.Form):
    """A name; the choices come from the page's address, of which the view keeps what it knows."""

    name = forms.CharField(max_length=80, error_messages={"required": _("Give the comparison a name.")})
    query = forms.CharField(
        max_length=2000, error_messages={"required": _("Choose runs first, then save the comparison.")}
    )
