"""Forms to create an account: during the set-up, and from an invitation."""

from __future__ import annotations

from django import forms
from django.contrib.auth import password_validation
from django.utils.translation import gettext_lazy as _

from dashboard.forms.accounts.projects import free_project_name
from dashboard.models import User


class NewPasswordForm(forms.Form):
    """Name and password of a new account."""

    name = forms.CharField(
        label=_("Your name"),
        max_length=150,
        widget=forms.TextInput(attrs={"autocomplete": "name"}),
    )
    password = forms.CharField(
        label=_("Password"),
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text=_(
            "At least 12 characters. Several unrelated words are easy to remember and hard to guess."
        ),
    )

    field_order = ("code", "email", "name", "password", "project")

    def _post_clean(self) -> None:
        """Validate the password last, because the validators compare it with the other fields."""
        super()._post_clean()  # type: ignore[misc]
        password = self.cleaned_data.get("password")
        if password is None:
            return
        # An invitation gives the address, the set-up asks for it.
        email = self.cleaned_data.get("email", self.initial.get("email", ""))
        user = User(email=email, first_name=self.cleaned_data.get("name", ""))
        try:
            password_validation.validate_password(password, user)
        except forms.ValidationError as error:
            self.add_error("password", error)


class SetupForm(NewPasswordForm):
    """The first account and its project. The view checks the code last, because each try counts."""

    code = forms.CharField(
        label=_("Set-up code"),
        max_length=100,
        widget=forms.TextInput(attrs={"autocomplete": "one-time-code", "spellcheck": "false"}),
        help_text=_("Graftworks printed it in the terminal when it started."),
    )
    email = forms.EmailField(
        label=_("Email address"),
        max_length=254,
        widget=forms.EmailInput(attrs={"autocomplete": "username"}),
        help_text=_("You sign in with this address."),
    )
    project = forms.CharField(
        label=_("Project name"),
        max_length=100,
        help_text=_(
            "Datasets, runs and adapters belong to a project. For example, use the name of your team."
        ),
    )

    def clean_project(self) -> str:
        return free_project_name(self.cleaned_data["project"])
