"""Exports of an adapter with its base model: start, progress, download, deletion, and pushes to the hub."""

from __future__ import annotations

from django.contrib import messages
from django.http import Http404, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST, require_safe

from dashboard.downloads import ranged_file
from dashboard.forms.exports import PushForm
from dashboard.gate import Request
from dashboard.models import Adapter, Export, ExportRefused, HubPush, Role
from dashboard.presenters.exports import exports_context
from dashboard.views.adapters.adapters import page_of


@require_GET
def index(request: Request, pk: int) -> HttpResponse:
    """Show the exports of an adapter, for live refresh."""
    adapter = Adapter.objects.with_facts().fetch(request.user, pk)
    may_edit = request.user.has_role(Role.EDITOR, adapter.project_id)
    context = {"adapter": adapter, "may_edit": may_edit, **exports_context(adapter)}
    return render(request, "adapters/_exports.html", context)


@require_POST
def create(request: Request, pk: int) -> HttpResponse:
    """Start an export in the given format."""
    adapter = Adapter.objects.with_facts().fetch(request.user, pk, Role.EDITOR)
    format = request.POST.get("format", "")
    if format not in Export.Format.values:
        messages.error(request, _("Choose one of the formats."))
        return redirect(adapter)
    try:
        return redirect(Export.objects.start(adapter, format, request.user))
    except ExportRefused as refusal:
        messages.error(request, str(refusal))
        return redirect(adapter)


@require_POST
def push(request: Request, pk: int) -> HttpResponse:
    """Upload the adapter, or its export, to the Hugging Face hub; managers only."""
    adapter = Adapter.objects.with_facts().fetch(request.user, pk, Role.MANAGER)
    form = PushForm(adapter, request.POST)
    if form.is_valid():
        try:
            return redirect(HubPush.objects.start(adapter, request.user, **form.cleaned_data))
        except ExportRefused as refusal:
            form.add_error("format", str(refusal))
    return page_of(request, adapter, status=422, push_form=form)


@require_safe
def download(request: Request, pk: int) -> HttpResponseBase:
    """Download the file of a finished export, resumable."""
    export = Export.objects.select_related("job").fetch(request.user, pk)
    if not export.is_finished:
        raise Http404
    try:
        return ranged_file(request, export.path(), export.filename)
    except FileNotFoundError as missing:
        raise Http404 from missing


@require_POST
def delete(request: Request, pk: int) -> HttpResponse:
    """Delete an export that has ended, with its file."""
    export = Export.objects.select_related("job", "adapter").fetch(request.user, pk, Role.EDITOR)
    back = export.get_absolute_url()
    try:
        export.remove()
    except ExportRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, _("Deleted: %(export)s.") % {"export": export})
    return redirect(back)
