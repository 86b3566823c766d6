"""allauth's forms with the labels of this product, and without placeholders that repeat them."""

from __future__ import annotations

from typing import Any

from allauth.account import forms as account_forms
from django import forms
from django.utils.translation import gettext_lazy as _

LABELS = {
    "login": _("Email address"),
    "email": _("Email address"),
    "password": _("Password"),
    "oldpassword": _("Current password"),
    "password1": _("New password"),
    "password2": _("New password again"),
}


class Labelled(forms.BaseForm):
    """Labels for allauth's fields."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, field in self.fields.items():
            field.label = LABELS.get(name, field.label)
            field.widget.attrs.pop("placeholder", None)


class LoginForm(Labelled, account_forms.LoginForm):  # type: ignore[misc]
    """Sign in."""


class ChangePasswordForm(Labelled, account_forms.ChangePasswordForm):  # type: ignore[misc]
    """Change one's password."""


class SetPasswordForm(Labelled, account_forms.SetPasswordForm):  # type: ignore[misc]
    """Set a first password."""


class ResetPasswordForm(Labelled, account_forms.ResetPasswordForm):  # type: ignore[misc]
    """Ask for a link to choose a new password."""


class ResetPasswordKeyForm(Labelled, account_forms.ResetPasswordKeyForm):  # type: ignore[misc]
    """Choose a new password."""
