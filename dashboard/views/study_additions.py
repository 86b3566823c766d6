"""What may come to a study after its start: seeds, arms, one more learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from dashboard.forms.study_additions import MOST_AT_ONCE, ArmsForm, RateForm, SeedsForm
from dashboard.gate import Request
from dashboard.models import Caller, OverBudget, Role, State, Study
from dashboard.models.study_plan import MOST_ARMS, MOST_SEEDS
from dashboard.models.study_words import more_seeds
from workers.errors import SpecError, TargetError


@require_POST
def seeds(request: Request, pk: int) -> HttpResponse:
    """Train every arm with more seeds."""
    study = Study.objects.fetch(request.user, pk, Role.EDITOR)
    form = SeedsForm(request.POST)

    def add() -> None:
        if not set(form.seeds()) <= set(study.seeds):  # else a double click, whose first half has added them
            study.add_seeds(form.seeds(), request.user)

    return added(request, study, form, add)


@require_POST
def arms(request: Request, pk: int) -> HttpResponse:
    """Compare further arms with the same reference on the same seeds."""
    study = Study.objects.fetch(request.user, pk, Role.EDITOR)
    form = ArmsForm(study, request.user, request.POST)

    def add() -> None:
        plans = form.plans()
        if plans:
            study.add_arms(plans, request.user, confirmed=form.cleaned_data["confirmed"])

    return added(request, study, form, add)


@require_POST
def rate(request: Request, pk: int) -> HttpResponse:
    """Try the learning rate beyond the edge at which an arm's lies."""
    study = Study.objects.fetch(request.user, pk, Role.EDITOR)
    form = RateForm(request.POST)

    def add() -> None:
        asked = form.cleaned_data
        study.try_rate(asked["arm"], request.user, rate=asked["rate"])

    return added(request, study, form, add)


def added(request: Request, study: Study, form: forms.Form, add: Callable[[], None]) -> HttpResponse:
    """The study's page, with what was asked for or with the reason why not."""
    if not form.is_valid():
        for errors in form.errors.values():
            messages.error(request, str(errors[0]))
    elif not study.may_grow:
        messages.error(request, _("Only to a study that has come to a result can anything be added."))
    else:
        try:
            add()
        except OverBudget as refusal:
            messages.error(request, str(refusal))
        except (SpecError, TargetError) as refusal:
            messages.error(request, refusal.message)
    return redirect(study)


def additions_context(study: Study, reader: Caller, *, may_edit: bool) -> dict[str, Any]:
    """What the questions for more seeds and arms need; they are asked of studies that came to a result."""
    if not may_edit or study.state != State.SUCCEEDED:
        return {}
    context: dict[str, Any] = {}
    if len(study.seeds) < MOST_SEEDS:
        advised = more_seeds(study)
        first = {"count": min(advised or 2, MOST_AT_ONCE), "first": max(study.seeds) + 1}
        context |= {"seeds_form": SeedsForm(initial=first), "advised_seeds": advised}
    if study.arms.count() < MOST_ARMS:
        context |= {"arms_form": ArmsForm(study, reader)}
    return context
