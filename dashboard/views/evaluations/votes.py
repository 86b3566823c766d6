"""Blind votes: one random answer at a time, without its origin or the verdict of the judge."""

from __future__ import annotations

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from dashboard.forms.evaluations import VoteForm
from dashboard.gate import Request
from dashboard.models import EvaluationItem, Vote
from dashboard.models.evaluations.judge_evaluation import Scope, evaluations_of
from dashboard.views.evaluations.judge_evaluations import fetch_run, fetch_study, hidden_reason, scope_url


@never_cache
@require_http_methods(["GET", "POST"])
def vote_on_study(request: Request, pk: int) -> HttpResponse:
    """Vote on the answers of all arms and of the base model of a study."""
    return vote_page(request, fetch_study(request, pk))


@never_cache
@require_http_methods(["GET", "POST"])
def vote_on_run(request: Request, pk: int) -> HttpResponse:
    """Vote on the answers of a run and of its base model."""
    return vote_page(request, fetch_run(request, pk))


def vote_page(request: Request, scope: Scope) -> HttpResponse:
    """Show the next answer; on POST, store the vote on the last one."""
    if reason := hidden_reason(scope):
        messages.info(request, reason)
        return redirect(scope)
    evaluations = evaluations_of(scope)
    if request.method == "POST":
        form = VoteForm(request.POST)
        if not form.is_valid():
            messages.error(request, _("Choose “Right” or “Wrong”."))
            return redirect(request.path)
        item = EvaluationItem.objects.filter(evaluation__in=evaluations, pk=form.cleaned_data["item"]).first()
        if item is None:
            raise Http404
        Vote.objects.cast(request.user, item, is_right=form.cleaned_data["verdict"] == "right")
        return redirect(request.path)
    context = {
        "scope": scope,
        "judge_url": scope_url(scope, "judge"),
        "item": Vote.objects.next_item(request.user, evaluations),
        "own_votes": Vote.objects.on(evaluations).filter(voter=request.user).count(),
    }
    return render(request, "evaluations/votes/create.html", context)
