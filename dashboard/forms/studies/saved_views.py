"""The form that saves a comparison."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _


class SavedViewForm(forms.Form):
    """A name, and the choices from the page's address."""

    name = forms.CharField(max_length=80, error_messages={"required": _("Give the comparison a name.")})
    query = forms.CharField(
        max_length=2000, error_messages={"required": _("Choose runs first, then save the comparison.")}
    )
