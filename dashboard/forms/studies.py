"""Studies' forms: how many seeds to add.

Parses and checks; what is done with it is the view's.
"""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy

MOST_AT_ONCE = 5


class SeedsForm(forms.Form):
    """How many seeds to add. `first` is the first new one that the page offered: sent twice, it adds once."""

    count = forms.TypedChoiceField(
        label=gettext_lazy("Seeds to add"),
        choices=[(number, str(number)) for number in range(1, MOST_AT_ONCE + 1)],
        coerce=int,
        error_messages=dict.fromkeys(
            ("required", "invalid_choice"),
            gettext_lazy("Choose how many seeds to add, from 1 to %(most)d.") % {"most": MOST_AT_ONCE},
        ),
    )
    first = forms.IntegerField(min_value=0, max_value=2**32 - 1, widget=forms.HiddenInput)

    def seeds(self) -> list[int]:
        """The seeds that were asked for."""
        first = self.cleaned_data["first"]
        return list(range(first, first + self.cleaned_data["count"]))
