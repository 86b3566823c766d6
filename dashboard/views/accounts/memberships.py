"""Members of the project: change a role, remove a member. The last manager is kept."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from dashboard.forms.accounts.team import RoleForm
from dashboard.gate import Request
from dashboard.models import LastManager, Membership, Role


@require_POST
def change(request: Request, pk: int) -> HttpResponse:
    """Change a member's role."""
    member = Membership.objects.fetch(request.user, pk, Role.MANAGER)
    form = RoleForm(request.POST)
    if not form.is_valid():
        messages.error(request, _("Choose a role: viewer, editor or manager."))
        return redirect("team-index")
    try:
        member.change_role(form.cleaned_data["role"])
    except LastManager:
        messages.error(request, last_manager(member))
    else:
        words = {"person": member.user, "role": member.get_role_display()}
        messages.success(request, _("%(person)s now has the role %(role)s.") % words)
    return redirect("team-index")


@require_POST
def remove(request: Request, pk: int) -> HttpResponse:
    """Remove a member from the project. Their data is kept."""
    member = Membership.objects.fetch(request.user, pk, Role.MANAGER)
    try:
        member.remove()
    except LastManager:
        messages.error(request, last_manager(member))
    else:
        messages.success(
            request, _("%(person)s is no longer a member of the project.") % {"person": member.user}
        )
    return redirect("team-index")


def last_manager(member: Membership) -> str:
    """Return the message that refuses a change of the only manager."""
    return _("%(person)s is the only manager. Give another member the manager role first.") % {
        "person": member.user
    }
