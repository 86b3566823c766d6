"""API tokens: list, create, revoke."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from dashboard.forms.accounts.tokens import TokenForm
from dashboard.gate import Request
from dashboard.models import ApiToken, Role
from dashboard.presenters.openai_snippets import openai_snippets


@require_GET
def index(request: Request) -> HttpResponse:
    """List the user's tokens of the project; to managers all tokens of the project."""
    return show(request, TokenForm(may_write=may_write(request)))


@never_cache
@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Create a token. Only this response contains its secret."""
    if request.method == "GET":
        return redirect("token-index")
    form = TokenForm(may_write=may_write(request), data=request.POST)
    if not form.is_valid():
        return show(request, form, status=422)
    token, secret = ApiToken.issue(
        request.project,
        request.user,
        form.cleaned_data["name"],
        scope=form.cleaned_data["scope"],
        days=form.cleaned_data["lifetime"],
    )
    fresh = TokenForm(may_write=may_write(request))
    return show(request, fresh, status=201, token=token, secret=secret)


@require_POST
def revoke(request: Request, pk: int) -> HttpResponse:
    """Revoke the user's token, or any token of a project that the user manages."""
    token = get_object_or_404(ApiToken.objects.manageable_by(request.user, request.user), pk=pk)
    token.revoke()
    messages.success(request, _("The token “%(name)s” no longer works.") % {"name": token.name})
    return redirect("token-index")


def may_write(request: Request) -> bool:
    """Return whether the user's role allows tokens with the write scope."""
    return request.user.has_role(Role.EDITOR, request.project.pk)


def show(request: Request, form: TokenForm, status: int = 200, **more: Any) -> HttpResponse:
    """Render the page with this form."""
    tokens = ApiToken.objects.manageable_by(request.user, request.user)
    tokens = tokens.filter(project=request.project, revoked_at=None)
    address = request.build_absolute_uri("/api/v1/runs")
    base_url = request.build_absolute_uri("/v1")
    context = {
        "tokens": tokens,
        "form": form,
        "address": address,
        "base_url": base_url,
        "snippets": openai_snippets(request.project, request.user, base_url),
        **more,
    }
    return render(request, "accounts/tokens/index.html", context, status=status)
