"""Saved views of lists and comparisons: named by editors, opened by every member of the project."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse, QueryDict
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from dashboard.forms.studies.saved_views import SavedViewForm
from dashboard.forms.training.run_list import RunListForm
from dashboard.gate import Request
from dashboard.models import Role, SavedView
from dashboard.views.studies.compare import known_parameters
from dashboard.views.training.run_list import TABLES


@require_POST
def create(request: Request) -> HttpResponse:
    """Keep the page's choices under a name; a name that is taken is kept as it is."""
    request.project.require(request.user, Role.EDITOR)
    form = SavedViewForm(request.POST)
    is_valid = form.is_valid()
    page = form.cleaned_data.get("page", SavedView.Page.COMPARE)
    query = known_query(request, page)
    if not is_valid:
        for errors in form.errors.values():
            messages.error(request, str(errors[0]))
        return redirect(f"{reverse(page)}?{query}")
    name = form.cleaned_data["name"]
    view = SavedView.objects.keep(request.project, request.user, page, name, query)
    if view is None:
        text = _("There is a saved view called “%(name)s” already. Choose another name.")
        messages.error(request, text % {"name": name})
        return redirect(f"{reverse(page)}?{query}")
    messages.success(request, _("Saved as “%(name)s”.") % {"name": view.name})
    return redirect(view)


def known_query(request: Request, page: str) -> str:
    """Return the parameters of the sent address that the page knows."""
    query = QueryDict(request.POST.get("query", "")[:2000])
    if page in TABLES:
        table = TABLES[SavedView.Page(page)]
        return RunListForm(query, project=request.project, columns=table.columns).address()
    return known_parameters(query).urlencode()


@require_POST
def delete(request: Request, pk: int) -> HttpResponse:
    """Delete a saved view; its runs stay."""
    view = SavedView.objects.fetch(request.user, pk, Role.EDITOR)
    view.delete()
    messages.success(request, _("Deleted “%(name)s”. Its runs are untouched.") % {"name": view.name})
    return redirect(view.page)
