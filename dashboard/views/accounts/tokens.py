"""API tokens: made here, shown once, listed with their last use, revoked."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.db.models import Q
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from dashboard.forms.accounts.tokens import TokenForm
from dashboard.gate import Request
from dashboard.models import ApiToken, Project, Role


@require_GET
def index(request: Request) -> HttpResponse:
    """One's own tokens of the project; managers see everybody's."""
    return show(request, TokenForm(may_write=may_write(request)))


@never_cache
@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """A new token. Its secret is in this answer and nowhere else."""
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
    """Stop a token: one's own, or any of a project that one manages."""
    token = seen_by(request).filter(pk=pk).first()
    if token is None:
        raise Http404
    token.revoke()
    messages.success(request, _("The token “%(name)s” no longer works.") % {"name": token.name})
    return redirect("token-index")


def seen_by(request: Request) -> Any:
    """The caller's own tokens, and all of the projects they manage."""
    managed: Any = request.user.projects(Role.MANAGER)
    visible = ApiToken.objects.visible_to(request.user)
    return visible.filter(Q(user=request.user) | Q(project__in=managed))


def may_write(request: Request) -> bool:
    """Whether the caller's role could ever use the write scope."""
    project: Project = request.project
    return request.user.projects(Role.EDITOR).filter(pk=project.pk).exists()


def show(request: Request, form: TokenForm, status: int = 200, **more: Any) -> HttpResponse:
    """The page with this form, and after creating with the one look at the secret."""
    tokens = seen_by(request).filter(project=request.project, revoked_at=None).select_related("user")
    address = request.build_absolute_uri("/api/v1/runs")
    context = {"tokens": tokens, "form": form, "address": address, **more}
    return render(request, "accounts/tokens/index.html", context, status=status)
