"""The stage of an adapter."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.models import Adapter


class StageForm(forms.Form):
    stage = forms.ChoiceField(label=_("Stage"), choices=Adapter.Stage.choices)
