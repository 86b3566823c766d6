"""Forms to create a project and to open another one."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.models import Project, User


def free_project_name(name: str) -> str:
    """Return the name. Raises ValidationError if a project has it, in any case."""
    if Project.objects.filter(name__iexact=name).exists():
        raise forms.ValidationError(_("A project with this name already exists. Choose another name."))
    return name


class ProjectForm(forms.Form):
    name = forms.CharField(
        label=_("Project name"), max_length=100, help_text=_("For example, the name of a team or product.")
    )

    def clean_name(self) -> str:
        return free_project_name(self.cleaned_data["name"])


class OpenForm(forms.Form):
    """The project to open, from those of the user."""

    project = forms.ModelChoiceField(Project.objects.none())

    def __init__(self, user: User, data: object = None) -> None:
        super().__init__(data)  # type: ignore[arg-type]
        self.fields["project"].queryset = user.projects()  # type: ignore[attr-defined]
