"""Studies: the list, a study's page with its live grid, stopping it, and adding seeds."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from dashboard.forms.studies import SeedsForm
from dashboard.gate import Request
from dashboard.models import Role, State, Study
from dashboard.models.study_plan import MOST_SEEDS
from dashboard.models.study_words import amount, more_seeds, sentence
from dashboard.views.study_grid import grid_of
from workers.errors import SpecError, TargetError


@require_GET
def index(request: Request) -> HttpResponse:
    """The project's studies, newest first."""
    found = Study.objects.with_facts().filter(project=request.project).visible_to(request.user)
    page, following = found.page(request.GET.get("cursor"))
    rows = [{"study": study, "grid": grid_of(study), "verdict": verdict_of(study)} for study in page]
    return render(request, "studies/index.html", {"rows": rows, "next": following})


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """A study: its grid while it works, its verdict first when it is over."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    may_edit = request.user.projects(Role.EDITOR).filter(pk=study.project_id).exists()
    context = {
        **grid_context(study),
        "may_edit": may_edit,
        "can_stop": may_edit and not study.is_over and study.cancelled_at is None,
        "verdict": verdict_of(study),
        "margin": amount(study, study.margin),
        **seeds_context(study, may_edit),
    }
    return render(request, "studies/detail.html", context)


@require_GET
def grid(request: Request, pk: int) -> HttpResponse:
    """The live grid alone. A study that has ended meanwhile has its page loaded anew, with the verdict."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    answer = render(request, "studies/_grid.html", grid_context(study))
    if study.is_over:
        answer.headers["HX-Refresh"] = "true"
    return answer


@require_POST
def cancel(request: Request, pk: int) -> HttpResponse:
    """Stop every job of it; runs that have finished keep their adapters."""
    study = Study.objects.fetch(request.user, pk, Role.EDITOR)
    if not study.request_cancel(request.user):
        messages.warning(request, _("It had ended already, so there was nothing to stop."))
    return redirect(study)


@require_POST
def seeds(request: Request, pk: int) -> HttpResponse:
    """Train every arm with more seeds; what is done is used again."""
    study = Study.objects.fetch(request.user, pk, Role.EDITOR)
    form = SeedsForm(request.POST)
    if not form.is_valid():
        for errors in form.errors.values():
            messages.error(request, str(errors[0]))
        return redirect(study)
    if not can_add(study):
        messages.error(request, _("Seeds can be added to a study that has come to a result."))
    elif not set(form.seeds()) <= set(study.seeds):  # else a double click, whose first half has added them
        try:
            study.add_seeds(form.seeds())
        except (SpecError, TargetError) as refusal:
            messages.error(request, refusal.message)
    return redirect(study)


def can_add(study: Study) -> bool:
    """Whether further seeds would be compared with what is there."""
    return study.state in (State.SUCCEEDED, State.RUNNING, State.QUEUED)


def seeds_context(study: Study, may_edit: bool) -> dict[str, Any]:
    """What the question for more seeds needs; it is asked of studies that have come to a result."""
    offered = may_edit and study.state == State.SUCCEEDED and len(study.seeds) < MOST_SEEDS
    if not offered:
        return {"seeds_form": None}
    advised = more_seeds(study)
    form = SeedsForm(initial={"count": min(advised or 2, 5), "first": max(study.seeds) + 1})
    return {"seeds_form": form, "advised_seeds": advised}


def grid_context(study: Study) -> dict[str, Any]:
    """What the live region shows; everything comes from the database."""
    return {"study": study, "grid": grid_of(study)}


def verdict_of(study: Study) -> str:
    """The sentence; "" before the end."""
    return sentence(study) if study.is_over else ""
