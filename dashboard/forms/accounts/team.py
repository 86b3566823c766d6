"""Forms to invite a user and to change a role."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.models import Membership, Project, Role


class InvitationForm(forms.Form):
    email = forms.EmailField(label=_("Email address"), max_length=254)
    role = forms.TypedChoiceField(
        label=_("Role"),
        choices=Role.choices,
        coerce=Role,
        initial=Role.EDITOR,
        help_text=_(
            "Viewers can read, compare and download. Editors can also upload and start runs. "
            "Managers can also manage members and settings."
        ),
    )

    def __init__(self, project: Project, data: object = None) -> None:
        super().__init__(data)  # type: ignore[arg-type]
        self.project = project

    def clean_email(self) -> str:
        """Return the address in lower case. Refuse members of the project."""
        email = str(self.cleaned_data["email"]).lower()
        if Membership.objects.filter(project=self.project, user__email=email).exists():
            raise forms.ValidationError(_("This user is already a member of the project."))
        return email


class RoleForm(forms.Form):
    role = forms.TypedChoiceField(label=_("Role"), choices=Role.choices, coerce=Role)
