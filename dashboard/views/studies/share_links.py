"""Links to a study's report: managers create and revoke them; they work without an account."""

from __future__ import annotations

from allauth.account.adapter import get_adapter
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from dashboard.forms.studies.study_results import ShareLinkForm
from dashboard.gate import Request
from dashboard.models import Role, ShareLink, Study
from dashboard.views.studies.study_reports import report_context

# Wrong links that one address may try in a row, and for how long they are held against it.
MOST_MISSES, MISS_SECONDS = 20, 300


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
    context = {"study": study, "link": link, "address": address(request, secret)}
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
    study = Study.objects.with_facts().get(pk=link.study_id)
    context = {**report_context(study, request.GET, with_rows=link.with_rows), "anonymous": True}
    return unlisted(render(request, "studies/shared.html", context))


def missed(request: HttpRequest) -> HttpResponse:
    """Answer 404, or 429 to an address that keeps guessing."""
    key = f"shared-misses:{get_adapter().get_client_ip(request)}"
    misses = cache.get(key, 0) + 1
    cache.set(key, misses, MISS_SECONDS)
    if misses > MOST_MISSES:
        return unlisted(render(request, "429.html", status=429))
    return unlisted(render(request, "studies/not_shared.html", status=404))


def unlisted(answer: HttpResponse) -> HttpResponse:
    """Keep an answer out of search engines and referrers."""
    answer.headers["X-Robots-Tag"] = "noindex, nofollow"
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


def address(request: HttpRequest, secret: str) -> str:
    path = reverse("share-link-open", args=[secret])
    return f"{settings.PUBLIC_URL}{path}" if settings.PUBLIC_URL else request.build_absolute_uri(path)
