"""The set-up: creates the first account and its project with the code from the server's terminal."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from dashboard.forms.accounts.setup import SetupForm
from dashboard.gate import Request
from dashboard.models import Project, Role, SetupCode, User

BACKEND = "allauth.account.auth_backends.AuthenticationBackend"


@login_not_required
@sensitive_post_parameters("password", "code")
@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Create the first account. The page answers 404 once an account exists."""
    if User.objects.exists():
        raise Http404
    form = SetupForm(request.POST or None)
    # The code is checked last, so that an error in another field does not use up a try.
    if form.is_valid() and not SetupCode.objects.check_code(form.cleaned_data["code"]):
        form.add_error(
            "code", _("The code is wrong. After ten attempts, restart Graftworks to get a new one.")
        )
    if not form.is_valid():
        return render(
            request, "accounts/setup/create.html", {"form": form}, status=422 if form.is_bound else 200
        )
    user = create_first_user(form.cleaned_data)
    login(request, user, backend=BACKEND)
    messages.success(
        request, _("Welcome. You are the manager of %(project)s.") % {"project": form.cleaned_data["project"]}
    )
    return redirect("home")


def create_first_user(values: dict[str, str]) -> User:
    """Create the superuser and the first project. Raises Http404 if an account exists meanwhile."""
    user = User.objects.build_user(
        values["email"], values["password"], first_name=values["name"], is_staff=True, is_superuser=True
    )
    with transaction.atomic():
        # Deleting the code is the lock: of two visitors with the code, the second finds none.
        deleted, _by_model = SetupCode.objects.all().delete()
        if not deleted or User.objects.exists():
            raise Http404
        user.save()
        Project.objects.named(values["project"]).admit(user, Role.MANAGER)
    return user
