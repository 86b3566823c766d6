"""Settings, Compute budget: the project's limit per month, its usage by user and month, and its changes."""

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
from dashboard.models.jobs.compute_budget import BudgetStatus, Charge, monthly_usage, shown_months
from dashboard.models.jobs.device_day import DeviceDay, usage_by_user

CHANGES_SHOWN = 10


@require_GET
def index(request: Request) -> HttpResponse:
    """Show usage and limit to all members; managers also get the form."""
    form = ComputeBudgetForm(hours=ComputeBudget.objects.hours_of(request.project))
    context = {**budget_context(request.project), "form": form}
    return render(request, "jobs/compute_budgets/index.html", context)


@require_POST
def change(request: Request) -> HttpResponse:
    """Set the limit per month; managers only."""
    request.project.require(request.user, Role.MANAGER)
    form = ComputeBudgetForm(request.POST)
    if not form.is_valid():
        context = {**budget_context(request.project), "form": form}
        return render(request, "jobs/compute_budgets/index.html", context, status=422)
    if ComputeBudget.objects.change(request.project, form.cleaned_data["hours"], request.user):
        messages.success(request, _("The new budget is in force."))
    return redirect("compute-budget-index")


def budget_context(project: Project) -> dict[str, Any]:
    """Return the current month, its users, the months before and the changes of the limit."""
    days = DeviceDay.objects.since(project, shown_months()[-1].begin)
    charge = Charge.for_work(project, 0.0, None, BudgetStatus.for_project(project, days))
    usages = usage_by_user(day for day in days if day.begin >= charge.status.month.begin)
    names = User.objects.in_bulk([pk for pk, _seconds in usages if pk])
    months = monthly_usage(project, days)
    highest = max([max(used, limit or 0.0) for _month, used, limit in months] + [1.0])
    return {
        "charge": charge,
        "people": [(names.get(pk or 0), seconds) for pk, seconds in usages],
        "months": [(month, used, limit, 100 * used / highest) for month, used, limit in months],
        "changes": ComputeBudget.objects.filter(project=project).select_related("set_by")[:CHANGES_SHOWN],
    }
