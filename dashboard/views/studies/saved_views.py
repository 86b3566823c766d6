"""Saved comparisons: named by editors, opened by every member of the project."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse, QueryDict
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from dashboard.forms.studies.saved_views import SavedViewForm
from dashboard.gate import Request
from dashboard.models import Role, SavedView
from dashboard.views.studies.compare import known_parameters


@require_POST
def create(request: Request) -> HttpResponse:
    """Keep the page's choices under a name; a name that is taken is kept as it is."""
    request.project.require(request.user, Role.EDITOR)
    form = SavedViewForm(request.POST)
    query = known_parameters(QueryDict(request.POST.get("query", "")[:2000])).urlencode()
    if not form.is_valid():
        for errors in form.errors.values():
            messages.error(request, str(errors[0]))
        return redirect(f"{reverse('compare')}?{query}")
    view = SavedView.objects.keep(request.project, request.user, form.cleaned_data["name"], query)
    if view is None:
        text = _("There is a saved comparison called “%(name)s” already. Choose another name.")
        messages.error(request, text % {"name": form.cleaned_data["name"]})
        return redirect(f"{reverse('compare')}?{query}")
    messages.success(request, _("Saved as “%(name)s”.") % {"name": view.name})
    return redirect(view)


@require_POST
def delete(request: Request, pk: int) -> HttpResponse:
    """Delete a saved comparison; its runs stay."""
    view = SavedView.objects.fetch(request.user, pk, Role.EDITOR)
    view.delete()
    messages.success(request, _("Deleted “%(name)s”. Its runs are untouched.") % {"name": view.name})
    return redirect("compare")
