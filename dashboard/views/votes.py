"""Votes: one answer at a time, drawn by chance, without a word on whose it is or what the judge says."""

from __future__ import annotations

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from dashboard.forms.judgings import VoteForm
from dashboard.gate import Request
from dashboard.models import EvaluationItem, Vote
from dashboard.models.judging import Scope, evaluations_of
from dashboard.views.judgings import address_of, not_yet, run_of, study_of
from workers.agreement import ENOUGH


@never_cache
@require_http_methods(["GET", "POST"])
def of_study(request: Request, pk: int) -> HttpResponse:
    """A study's answers, those of all arms and of the base model mixed."""
    return voted(request, study_of(request, pk))


@never_cache
@require_http_methods(["GET", "POST"])
def of_run(request: Request, pk: int) -> HttpResponse:
    """A run's answers and its base model's, mixed."""
    return voted(request, run_of(request, pk))


def voted(request: Request, scope: Scope) -> HttpResponse:
    """The next answer; with POST, the vote on the last one first."""
    if reason := not_yet(scope):
        if request.method == "POST":
            messages.error(request, _("Your vote does not count."))
        messages.info(request, reason)
        return redirect(scope)
    evaluations = evaluations_of(scope)
    if request.method == "POST":
        form = VoteForm(request.POST)
        if not form.is_valid():
            messages.error(request, _("That was no vote. Choose “Right” or “Wrong”."))
            return redirect(request.path)
        item = EvaluationItem.objects.filter(evaluation__in=evaluations, pk=form.cleaned_data["item"]).first()
        if item is None:
            raise Http404
        Vote.objects.cast_by(request.user, item, is_right=form.cleaned_data["verdict"] == "right")
        return redirect(request.path)
    context = {
        "scope": scope,
        "judge_address": address_of(scope, "judge"),
        "item": Vote.objects.next_for(request.user, evaluations),
        "own": Vote.objects.on(evaluations).filter(voter=request.user).count(),
        "enough": ENOUGH,
    }
    return render(request, "votes/create.html", context)
