"""Projects: open another one, create one."""

from __future__ import annotations

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from dashboard.forms.accounts.projects import OpenForm, ProjectForm
from dashboard.gate import Request
from dashboard.models import Project, Role


@require_POST
def open(request: Request) -> HttpResponse:
    """Switch this session to another project."""
    form = OpenForm(request.user, request.POST)
    if not form.is_valid():
        raise Http404
    request.session["project"] = form.cleaned_data["project"].pk
    return redirect("home")


@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Create a project with the current superuser as its manager."""
    if not request.user.is_superuser:
        raise PermissionDenied(_("Only an administrator of this installation can create a project."))
    form = ProjectForm(request.POST or None)
    if not form.is_valid():
        return render(
            request, "accounts/projects/create.html", {"form": form}, status=422 if form.is_bound else 200
        )
    with transaction.atomic():
        project = Project.objects.named(form.cleaned_data["name"])
        project.admit(request.user, Role.MANAGER)
    request.session["project"] = project.pk
    messages.success(request, _("The project %(name)s is ready. Invite your team.") % {"name": project})
    return redirect("team-index")
