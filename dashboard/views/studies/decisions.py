"""Decisions on the evidence of a study."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from dashboard.forms.studies.study_results import DecisionForm
from dashboard.gate import Request
from dashboard.models import Decision, Role, Study


@require_POST
def create(request: Request, pk: int) -> HttpResponse:
    """Write down what is shipped and why; a manager's decision approves the adapter."""
    study = Study.objects.fetch(request.user, pk, Role.EDITOR)
    form = DecisionForm(study, request.POST)
    if not study.is_over or not study.result.arms:
        messages.error(request, _("Record a decision when the study has a result."))
    elif not form.is_valid():
        messages.error(
            request, _("Choose the adapter to ship, and give the reason in up to 1,000 characters.")
        )
    else:
        decision = Decision.objects.record(
            study, form.cleaned_data["adapter"], form.cleaned_data["reason"], request.user
        )
        text = (
            _("Decision recorded, and %(adapter)s is approved.")
            if decision.approved
            else _("Decision recorded. A manager still has to approve %(adapter)s.")
        )
        messages.success(request, text % {"adapter": decision.adapter})
    return redirect(f"{study.get_absolute_url()}#study-decisions")
