"""Form to create an API token."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.models import ApiToken

LIFETIMES = (("30", _("30 days")), ("90", _("90 days")), ("365", _("1 year")), ("never", _("Never")))


def days(value: str) -> int | None:
    """Return the days of a lifetime choice; None if the token does not expire."""
    return None if value == "never" else int(value)


class TokenForm(forms.Form):
    """A new token. Viewers cannot choose the write scope, because their token could not use it."""

    name = forms.CharField(
        label=_("Name"), max_length=100, help_text=_("What the token is for, for example “nightly upload”.")
    )
    scope = forms.TypedChoiceField(
        label=_("Scope"),
        choices=ApiToken.Scope.choices,
        coerce=ApiToken.Scope,
        initial=ApiToken.Scope.READ,
        help_text=_("Read access is enough to monitor runs and download adapters."),
    )
    lifetime = forms.TypedChoiceField(label=_("Expires after"), choices=LIFETIMES, coerce=days, initial="90")

    def __init__(self, *, may_write: bool, data: Any = None) -> None:
        super().__init__(data)
        if not may_write:
            self.fields["scope"].choices = [  # type: ignore[attr-defined]
                (ApiToken.Scope.READ.value, ApiToken.Scope.READ.label)
            ]
