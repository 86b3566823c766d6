"""What the judge is to see, and the consent to send it there."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.judging import DEFAULT_ROWS, MOST_ROWS
from workers.judge import Endpoint

_SPAN = gettext_lazy("Enter a whole number from %(low)s to %(high)s.") % {"low": 1, "high": f"{MOST_ROWS:,}"}


class RowsForm(forms.Form):
    """How many test rows it is about: the page then tells what would be sent of so many."""

    rows = forms.IntegerField(
        label=gettext_lazy("Test rows at most"),
        min_value=1,
        max_value=MOST_ROWS,
        initial=DEFAULT_ROWS,
        help_text=gettext_lazy(
            "Of more rows, so many are drawn by chance; always the same, and a larger number adds to them."
        ),
        error_messages=dict.fromkeys(("required", "invalid", "min_value", "max_value"), _SPAN),
        widget=forms.NumberInput(attrs={"inputmode": "numeric"}),
    )

    @property
    def number(self) -> int:
        """What was asked for; the usual number where that cannot be read."""
        return int(self.cleaned_data["rows"]) if self.is_valid() else DEFAULT_ROWS


class ConsentForm(forms.Form):
    """The tick without which nothing is sent."""

    agreed = forms.BooleanField(
        error_messages={
            "required": gettext_lazy(
                "Tick this first: the rows leave this installation, and that is yours to allow."
            )
        }
    )

    def __init__(self, judge: Endpoint, data: Any = None) -> None:
        super().__init__(data)
        self.fields["agreed"].label = _("These rows and answers may be sent to %(host)s") % {
            "host": judge.host
        }


class VoteForm(forms.Form):
    """A person's word on one answer."""

    item = forms.IntegerField(min_value=1, max_value=2**63 - 1)
    verdict = forms.ChoiceField(choices=[("right", gettext_lazy("Right")), ("wrong", gettext_lazy("Wrong"))])
