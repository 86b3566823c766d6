"""The judge page of a study or a run: consent to send answers, verdicts, and agreement with votes."""

from __future__ import annotations

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from dashboard.forms.evaluations import JudgeForm
from dashboard.gate import Request
from dashboard.models import Job, Role, Study, TrainingRun, Vote
from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.judge_evaluation import (
    MOST_ROWS,
    Scope,
    evaluations_of,
    pending_items,
    submit_judge_evaluation,
)
from workers.contract.judge import MOST_LETTERS, PROMPT


@require_http_methods(["GET", "POST"])
def judge_study(request: Request, pk: int) -> HttpResponse:
    return judge_page(request, fetch_study(request, pk))


@require_http_methods(["GET", "POST"])
def judge_run(request: Request, pk: int) -> HttpResponse:
    run = fetch_run(request, pk)
    # Judged apart, the arms of one study could have the verdicts of two judges.
    return judge_page(request, run.study_arm.study if run.study_arm else run)


def fetch_study(request: Request, pk: int) -> Study:
    """Return a study: for viewers on GET, for editors on POST."""
    return Study.objects.with_facts().fetch(request.user, pk, required_role(request))


def fetch_run(request: Request, pk: int) -> TrainingRun:
    """Return a run: for viewers on GET, for editors on POST."""
    runs = TrainingRun.objects.with_facts().select_related("study_arm__study")
    return runs.fetch(request.user, pk, required_role(request))


def required_role(request: Request) -> Role:
    """Return the role that the request needs."""
    return Role.VIEWER if request.method == "GET" else Role.EDITOR


def hidden_reason(scope: Scope) -> str:
    """Return why no answers can be shown, or "". Those of a study are hidden until it has ended."""
    study = scope if isinstance(scope, Study) else scope.study_arm.study if scope.study_arm else None
    if study and not study.scores_are_open:
        return _("Answers are shown when the study has a result.")
    if not evaluations_of(scope).exists():
        return _("There are no answers yet, because nothing has been evaluated.")
    return ""


def judge_page(request: Request, scope: Scope) -> HttpResponse:
    """Show the page; on POST, queue a judge evaluation."""
    if reason := hidden_reason(scope):
        messages.info(request, reason)
        return redirect(scope)
    judge, evaluations = settings.JUDGE, evaluations_of(scope)
    form = JudgeForm(evaluations, judge, request.POST or None)
    if judge.url and form.is_valid():
        if submit_judge_evaluation(scope, by=request.user, judge=judge, rows=form.cleaned_data["rows"]):
            messages.success(request, _("The answers are in the queue for the judge."))
        else:
            messages.info(request, _("The judge is already working on these answers."))
        return redirect(request.path)
    jobs = Job.objects.filter(judged_evaluations__in=evaluations).distinct().select_related("created_by")
    # Equal answers to a row are sent once.
    pending = pending_items(evaluations, str(judge), MOST_ROWS).values("row", "output").distinct()
    context = {
        "scope": scope,
        "judge": judge,
        "form": form,
        "may_edit": request.user.has_role(Role.EDITOR, scope.project_id),
        "vote_url": scope_url(scope, "vote"),
        "scores_url": scores_url(scope),
        "prompt": PROMPT,
        "most_letters": MOST_LETTERS,
        "jobs": jobs,
        "is_working": any(not job.is_over for job in jobs),
        "pending": pending.count(),
        "votes": Vote.objects.on(evaluations).count(),
        "agreement": Vote.objects.agreement(evaluations),
    }
    status = 422 if form.errors else 200
    return render(request, "evaluations/judge_evaluations/index.html", context, status=status)


def scope_url(scope: Scope, page: str) -> str:
    return reverse(f"{'study' if isinstance(scope, Study) else 'training-run'}-{page}", args=[scope.pk])


def scores_url(scope: Scope) -> str:
    """Return the page with the shares of right answers: the comparison of a study's runs, or the run."""
    if isinstance(scope, TrainingRun):
        return scope.get_absolute_url()
    runs = ",".join(str(run.pk) for run in scope.final_runs())
    reference = next((run.pk for run in scope.reference_arm.final_runs()), "")
    return f"{reverse('compare')}?runs={runs}&metric={JUDGE}&reference={reference}"
