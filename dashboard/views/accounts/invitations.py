"""Invitations to a project: create, revoke, accept. An invitation's link works once."""

from __future__ import annotations

import logging
from smtplib import SMTPException
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.core.mail import send_mail
from django.db import IntegrityError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from dashboard.forms.accounts.setup import NewPasswordForm
from dashboard.forms.accounts.team import InvitationForm
from dashboard.gate import Request
from dashboard.models import Invitation, InvitationUsed, Role, User
from dashboard.views.accounts import team
from dashboard.views.accounts.setup import BACKEND

log = logging.getLogger(__name__)
CONSOLE = "django.core.mail.backends.console.EmailBackend"


@never_cache
@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Create an invitation. Show its link once, and send it if email is set up."""
    request.project.require(request.user, Role.MANAGER)
    if request.method == "GET":
        return redirect("team-index")
    form = InvitationForm(request.project, request.POST)
    if not form.is_valid():
        return team.show(request, form, status=422)
    email, role = form.cleaned_data["email"], form.cleaned_data["role"]
    invitation, secret = Invitation.issue(request.project, email, role, request.user)
    link = address(request, secret)
    sent = send(invitation, link)
    fresh = InvitationForm(request.project)
    return team.show(request, fresh, status=201, invitation=invitation, link=link, sent=sent)


@require_POST
def revoke(request: Request, pk: int) -> HttpResponse:
    """Revoke an open invitation, so that its link stops working."""
    invitation = Invitation.objects.fetch(request.user, pk, Role.MANAGER)
    if invitation.accepted_at:
        messages.error(request, _("%(email)s has already joined.") % {"email": invitation.email})
        return redirect("team-index")
    invitation.delete()
    messages.success(request, _("The invitation for %(email)s is revoked.") % {"email": invitation.email})
    return redirect("team-index")


@login_not_required
@never_cache
@sensitive_post_parameters("password")
@require_http_methods(["GET", "POST"])
def accept(request: Request, secret: str) -> HttpResponse:
    """Join the project. New users choose a password; users with an account sign in first."""
    invitation = Invitation.objects.select_related("project").with_secret(secret)
    if invitation is None:
        return render(request, "accounts/invitations/closed.html", status=404)
    if request.user.is_authenticated:
        return accept_as(request, invitation)
    if User.objects.filter(email=invitation.email).exists():
        return redirect_to_login(request.get_full_path())
    form = NewPasswordForm(request.POST or None, initial={"email": invitation.email})
    if not form.is_valid():
        return show(request, invitation, status=422 if form.is_bound else 200, form=form)
    user = User.objects.build_user(
        invitation.email, form.cleaned_data["password"], first_name=form.cleaned_data["name"]
    )
    try:
        invitation.accept(user)
    except InvitationUsed:
        return render(request, "accounts/invitations/closed.html", status=404)
    except IntegrityError:  # another invitation of this address was accepted meanwhile
        return redirect_to_login(request.get_full_path())
    login(request, user, backend=BACKEND)
    return welcome(request, invitation)


def accept_as(request: Request, invitation: Invitation) -> HttpResponse:
    """Join with the current account, if the invitation is for its address."""
    if request.user.email != invitation.email:
        return show(request, invitation, status=403, other_account=True)
    if request.method != "POST":
        return show(request, invitation)
    try:
        invitation.accept(request.user)
    except InvitationUsed:
        return render(request, "accounts/invitations/closed.html", status=404)
    return welcome(request, invitation)


def welcome(request: Request, invitation: Invitation) -> HttpResponse:
    """Open the joined project."""
    request.session["project"] = invitation.project_id
    messages.success(request, _("Welcome to %(project)s.") % {"project": invitation.project})
    return redirect("home")


def show(request: HttpRequest, invitation: Invitation, status: int = 200, **more: Any) -> HttpResponse:
    """Render the page of the invitation."""
    context = {"invitation": invitation, "role": Role(invitation.role), **more}
    return render(request, "accounts/invitations/accept.html", context, status=status)


def address(request: HttpRequest, secret: str) -> str:
    """Return the full address of the invitation."""
    path = reverse("invitation-accept", args=[secret])
    return f"{settings.PUBLIC_URL}{path}" if settings.PUBLIC_URL else request.build_absolute_uri(path)


def send(invitation: Invitation, link: str) -> bool:
    """Send the link by email. Return whether that succeeded."""
    if settings.EMAIL_BACKEND == CONSOLE:
        # The console backend would write a working link to the log.
        return False
    subject = _("Join %(project)s on Graftworks") % {"project": invitation.project}
    text = _(
        "%(person)s invites you to the project %(project)s on Graftworks.\n\n"
        "Open this link to join. It works once, until %(date)s:\n%(link)s\n"
    ) % {
        "person": invitation.invited_by,
        "project": invitation.project,
        "date": invitation.expires_at.date().isoformat(),
        "link": link,
    }
    try:
        return bool(send_mail(" ".join(subject.split()), text, None, [invitation.email]))
    except (OSError, SMTPException) as error:
        log.warning("The invitation for %s could not be sent: %s", invitation.email, error)
        return False
