"""The form of a project's compute budget."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.models.jobs.compute_budget import MAX_HOURS_PER_MONTH

RULE = _("Enter a number of hours from 0 to %(most)s, such as 20 or 7.5. Leave it empty for no limit.") % {
    "most": f"{MAX_HOURS_PER_MONTH:,}"
}


class ComputeBudgetForm(forms.Form):
    """Hours per month; empty for no limit."""

    hours = forms.FloatField(
        label=_("Hours per month"),
        required=False,
        min_value=0,
        max_value=MAX_HOURS_PER_MONTH,
        help_text=_("Leave empty for no limit. With 0, no new work starts."),
        error_messages=dict.fromkeys(("invalid", "min_value", "max_value"), RULE),
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
    )

    def __init__(self, data: Any = None, *, hours: float | None = None) -> None:
        # The input shows 20 rather than 20.0.
        value = int(hours) if hours is not None and hours.is_integer() else hours
        super().__init__(data, initial={"hours": value})
