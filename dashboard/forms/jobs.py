"""Checks the hours that a project may use in a month."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.models.jobs.compute_budget import MAX_HOURS_PER_MONTH

SAY = _("Enter a number of hours from 0 to %(most)s, such as 20 or 7.5. Leave it empty for no limit.") % {
    "most": f"{MAX_HOURS_PER_MONTH:,}"
}


class ComputeBudgetForm(forms.Form):
    """Hours per month; nothing is no limit, and 0 lets nothing start."""

    hours = forms.FloatField(
        label=_("Hours per month"),
        required=False,
        min_value=0,
        max_value=MAX_HOURS_PER_MONTH,
        help_text=_("Left empty there is no limit. With 0 nothing more is started."),
        error_messages=dict.fromkeys(("invalid", "min_value", "max_value"), SAY),
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
    )

    def __init__(self, data: Any = None, *, hours: float | None = None) -> None:
        # 20 rather than 20.0, as people write it.
        shown = int(hours) if hours is not None and hours.is_integer() else hours
        super().__init__(data, initial={"hours": shown})
