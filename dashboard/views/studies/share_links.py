"""Links to a study's report: managers create and revoke them; they work without an account."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from dashboard.forms.studies.study_results import ShareLinkForm
from dashboard.gate import Request
from dashboard.models import Role, ShareLink, Study
from dashboard.views.public_links import link_address, missed, unlisted
from dashboard.views.studies.study_reports import report_context


@never_cache
@require_POST
def create(request: Request, pk: int) -> HttpResponse:
    """Create a link to the report of a finished study, and show it once."""
    study = Study.objects.fetch(request.user, pk, Role.MANAGER)
    form = ShareLinkForm(request.POST)
    if not study.result.arms:
        messages.error(request, _("This study has no result yet, so there is no report to share."))
        return redirect(study)
    if not form.is_valid():
        messages.error(request, _("Choose how long the link works: 7, 30 or 90 days."))
        return redirect(study)
    link, secret = ShareLink.issue(study, request.user, **form.cleaned_data)
    address = link_address(request, "share-link-open", secret)
    context = {"study": study, "link": link, "address": address}
    return render(request, "studies/share_link.html", context, status=201)


@require_POST
def revoke(request: Request, pk: int) -> HttpResponse:
    """Revoke a link; it stops working at once."""
    link = ShareLink.objects.fetch(request.user, pk, Role.MANAGER)
    link.revoke()
    messages.success(request, _("The link no longer works."))
    return redirect(f"{link.study.get_absolute_url()}#study-share")


@login_not_required
@never_cache
@require_GET
def open(request: HttpRequest, secret: str) -> HttpResponse:
    """Show the report behind a link; wrong, expired and revoked links look the same."""
    link = ShareLink.objects.with_secret(secret)
    if link is None:
        return missed(request)
    study = Study.objects.with_names().get(pk=link.study_id)
    context: dict[str, object] = {"study": study}
    if study.is_over and study.result.arms:
        context |= report_context(request, study, anonymous=True, with_rows=link.with_rows)
    return unlisted(render(request, "studies/shared.html", context))
