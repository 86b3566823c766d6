"""Settings, Compute budget: what the project may use in a month, what it has used, and who used it."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from dashboard.forms.jobs import ComputeBudgetForm
from dashboard.gate import Request
from dashboard.models import ComputeBudget, Project, Role, User
from dashboard.models.jobs.compute_budget import Charge, monthly_usage
from dashboard.models.jobs.compute_use import by_person, device_usage

CHANGES_SHOWN = 10


@require_GET
def index(request: Request) -> HttpResponse:
    """Everybody sees how the month stands; managers also set the limit."""
    form = ComputeBudgetForm(hours=ComputeBudget.objects.hours_of(request.project))
    return render(request, "jobs/compute_budgets/index.html", {**context_of(request.project), "form": form})


@require_POST
def change(request: Request) -> HttpResponse:
    """Set the hours of every month from now on."""
    request.project.require(request.user, Role.MANAGER)
    form = ComputeBudgetForm(request.POST)
    if not form.is_valid():
        context = {**context_of(request.project), "form": form}
        return render(request, "jobs/compute_budgets/index.html", context, status=422)
    if ComputeBudget.objects.change(request.project, form.cleaned_data["hours"], request.user):
        messages.success(request, _("The budget is changed. It counts from now on."))
    return redirect("compute-budget-index")


def context_of(project: Project) -> dict[str, Any]:
    """The month, its people, the months before and the changes of the limit."""
    charge = Charge.of(project, 0.0, None)
    month = charge.status.month
    people = by_person(device_usage(project, month.begin), month)
    names = User.objects.in_bulk([pk for pk, _seconds in people if pk])
    months = monthly_usage(project)
    most = max([max(used, limit or 0.0) for _month, used, limit in months] + [1.0])
    return {
        "charge": charge,
        "people": [(names.get(pk or 0), seconds) for pk, seconds in people],
        "months": [(month, used, limit, 100 * used / most) for month, used, limit in months],
        "changes": ComputeBudget.objects.filter(project=project).select_related("set_by")[:CHANGES_SHOWN],
    }
