"""The judge page of a study or a run: consent to send answers, verdicts, and agreement with votes."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from dashboard.forms.evaluations import JudgeForm
from dashboard.gate import Request
from dashboard.models import Evaluation, JudgeEvaluation, Role, Study, TrainingRun, Vote
from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.evaluation import EvaluationQuerySet
from dashboard.models.evaluations.judge_evaluation import (
    MOST_ROWS,
    JudgeBusy,
    Scope,
    configured_judge,
    evaluations_of,
    pending_items,
)
from workers.judge import MOST_LETTERS, PROMPT
from workers.statistics.agreement import ENOUGH

MOST_LISTED = 10


@require_http_methods(["GET", "POST"])
def of_study(request: Request, pk: int) -> HttpResponse:
    return judge_page(request, fetch_study(request, pk))


@require_http_methods(["GET", "POST"])
def of_run(request: Request, pk: int) -> HttpResponse:
    """Show the judge page of a run; a run of a study is judged with the whole study."""
    run = fetch_run(request, pk)
    if run.study_arm:
        # Judged apart, the arms of one study could have the verdicts of two judges.
        if request.method == "POST":
            messages.error(
                request, _("Nothing was sent. This run belongs to a study: judge the whole study.")
            )
        return redirect(scope_url(run.study_arm.study, "judge"))
    return judge_page(request, run)


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
        if request.method == "POST":
            messages.error(request, _("Nothing was sent."))
        messages.info(request, reason)
        return redirect(scope)
    judge = configured_judge()
    if judge is None and request.method == "POST":
        messages.error(request, _("Nothing was sent, because no judge is configured."))
        return redirect(request.path)
    form = JudgeForm(scope, judge, request.POST if request.method == "POST" else None) if judge else None
    if judge and form and form.is_valid():
        try:
            rows = form.cleaned_data["rows"]
            JudgeEvaluation.objects.submit(scope, by=request.user, judge=judge, rows=rows)
            messages.success(request, _("The answers are in the queue for the judge."))
        except JudgeBusy:
            messages.info(request, _("The judge is already working on these answers."))
        return redirect(request.path)
    evaluations = evaluations_of(scope)
    sent = JudgeEvaluation.objects.of(scope).select_related("job", "by")[:MOST_LISTED]
    is_working = any(not judge_evaluation.is_over for judge_evaluation in sent)
    # Equal answers to a row are sent once.
    pending = pending_items(evaluations, judge.model if judge else "", MOST_ROWS)
    context = {
        "scope": scope,
        "judge": judge,
        "form": form,
        "may_edit": request.user.has_role(Role.EDITOR, scope.project_id),
        "vote_url": scope_url(scope, "vote"),
        "prompt": PROMPT,
        "most_letters": MOST_LETTERS,
        "judge_evaluations": sent,
        "is_working": is_working,
        **judge_scores(scope, evaluations),
        "pending": pending.values("row", "output").distinct().count() if judge else 0,
        "votes": Vote.objects.on(evaluations).count(),
        "agreement": Vote.objects.agreement(evaluations),
        "enough": ENOUGH,
    }
    response = render(
        request, "evaluations/judgings/index.html", context, status=422 if request.method == "POST" else 200
    )
    if request.headers.get("HX-Target") == "judge-progress" and not is_working:
        response.headers["HX-Refresh"] = "true"
    return response


def scope_url(scope: Scope, page: str) -> str:
    return reverse(f"{'study' if isinstance(scope, Study) else 'training-run'}-{page}", args=[scope.pk])


def judge_scores(scope: Scope, evaluations: EvaluationQuerySet) -> dict[str, Any]:
    """Return each arm's share of right answers over its seeds, the base model last, and the Compare link."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for evaluation in evaluations.select_related("run__study_arm"):
        if JUDGE in evaluation.metrics:
            run = evaluation.run
            is_base = evaluation.subject == Evaluation.Subject.BASE
            name = "" if is_base else run.study_arm.name if run.study_arm else run.name
            by_arm.setdefault(name, []).append(evaluation.metrics)
    shares = []
    for name, metrics in sorted(by_arm.items(), key=lambda pair: not pair[0]):
        answers = sum(one["judge_rows"] for one in metrics)
        share = sum(one[JUDGE] * one["judge_rows"] for one in metrics) / answers
        shares.append({"name": name, "share": share, "answers": answers})
    compare_url = ""
    if isinstance(scope, Study) and len(runs := scope.final_runs()) > 1:
        reference = scope.reference_arm.final_runs()
        ids = ",".join(str(run.pk) for run in runs)
        pinned = reference[0].pk if reference else ""
        compare_url = f"{reverse('compare')}?runs={ids}&metric={JUDGE}&reference={pinned}"
    return {"shares": shares, "compare_url": compare_url}
