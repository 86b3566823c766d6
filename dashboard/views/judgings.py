"""The judge's page of a study or a run: what would be sent where, what came of it, and if people agree."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from dashboard.forms.judgings import ConsentForm, RowsForm
from dashboard.gate import Request
from dashboard.models import Evaluation, EvaluationItem, JudgeEvaluation, Role, Study, TrainingRun, Vote
from dashboard.models.evaluation import EvaluationQuerySet
from dashboard.models.judging import (
    JUDGE,
    MOST_ROWS,
    JudgeBusy,
    Scope,
    endpoint,
    evaluations_of,
    judged_otherwise,
    rows_of,
    unjudged,
)
from workers.agreement import ENOUGH
from workers.judge import MOST_LETTERS, PROMPT, Endpoint

JUDGINGS_SHOWN = 10


@require_http_methods(["GET", "POST"])
def of_study(request: Request, pk: int) -> HttpResponse:
    """The judge of a study's answers."""
    return judged(request, study_of(request, pk))


@require_http_methods(["GET", "POST"])
def of_run(request: Request, pk: int) -> HttpResponse:
    """The judge of a run's answers and of its base model's; a study's are judged all together."""
    run = run_of(request, pk)
    if run.study_arm:
        # Judged apart, the arms of one study could have the verdicts of two judges.
        if request.method == "POST":
            text = _("Nothing was sent: this run belongs to a study, whose answers are judged all together.")
            messages.error(request, text)
        return redirect(address_of(run.study_arm.study, "judge"))
    return judged(request, run)


def study_of(request: Request, pk: int) -> Study:
    """The study, for whoever may do what the request asks."""
    return Study.objects.with_facts().fetch(request.user, pk, role_for(request))


def run_of(request: Request, pk: int) -> TrainingRun:
    """The run, for whoever may do what the request asks."""
    runs = TrainingRun.objects.with_facts().select_related("study_arm__study")
    return runs.fetch(request.user, pk, role_for(request))


def role_for(request: Request) -> Role:
    """Who reads may look; whoever sends or votes works in the project."""
    return Role.VIEWER if request.method == "GET" else Role.EDITOR


def not_yet(scope: Scope) -> str:
    """Why there are no answers to look at, or "". A study's stay hidden until it is over."""
    study = scope if isinstance(scope, Study) else scope.study_arm.study if scope.study_arm else None
    if study and not study.scores_are_open:
        return _("Answers are shown when the study has come to a result.")
    if not evaluations_of(scope).exists():
        return _("There are no answers yet: nothing of this has been scored.")
    return ""


def judged(request: Request, scope: Scope) -> HttpResponse:
    """The page; with POST, the answers go to the judge."""
    if reason := not_yet(scope):
        if request.method == "POST":
            messages.error(request, _("Nothing was sent."))
        messages.info(request, reason)
        return redirect(scope)
    judge = endpoint()
    if judge is None and request.method == "POST":
        messages.error(request, _("No judge is set up, so nothing was sent."))
        return redirect(request.path)
    sent = request.POST if request.method == "POST" else None
    asked = RowsForm(request.GET if sent is None and "rows" in request.GET else sent)
    consent = ConsentForm(judge, sent) if judge else None
    if judge and consent and consent.is_valid() and asked.is_valid():
        try:
            JudgeEvaluation.objects.submit(scope, by=request.user, judge=judge, rows=asked.number)
            messages.success(request, _("The answers go to the judge in the order of the queue."))
        except JudgeBusy:
            messages.info(request, _("These answers are with the judge already."))
        return redirect(request.path)
    context = page_context(scope) | {
        "asked": asked,
        "form": consent,
        "judge": judge,
        "may_edit": request.user.projects(Role.EDITOR).filter(pk=scope.project_id).exists(),
    }
    if judge and not context["works"]:
        context |= asking_context(scope, judge, asked.number)
    answer = render(request, "judgings/index.html", context, status=200 if sent is None else 422)
    if request.headers.get("HX-Target") == "judged" and not context["works"]:
        # What the judge has said may be compared now, and more may be sent: the whole page is another one.
        answer.headers["HX-Refresh"] = "true"
    return answer


def to_send(evaluations: EvaluationQuerySet, rows: list[int], judge: Endpoint) -> int:
    """How many different answers to these rows have no verdict of this judge; equal ones are sent once."""
    items = unjudged(evaluations, rows)
    if judged_otherwise(evaluations, judge).exists():
        items = EvaluationItem.objects.filter(evaluation__in=evaluations, row__in=rows)
    return items.order_by().values("row", "output").distinct().count()


def asking_context(scope: Scope, judge: Endpoint, number: int) -> dict[str, Any]:
    """What would be sent of so many rows, and whether there is anything to send of any number."""
    evaluations = evaluations_of(scope)
    rows = rows_of(evaluations, number)
    found = to_send(evaluations, rows, judge)
    return {
        "rows": number,
        "rows_there": len(rows),
        "to_send": found,
        "more_to_send": found or to_send(evaluations, rows_of(evaluations, MOST_ROWS), judge),
    }


def page_context(scope: Scope) -> dict[str, Any]:
    """What is judged, and how far people agree."""
    evaluations = evaluations_of(scope)
    judge_evaluations = JudgeEvaluation.objects.of(scope).select_related("job", "by")[:JUDGINGS_SHOWN]
    return {
        "scope": scope,
        "is_study": isinstance(scope, Study),
        "vote_address": address_of(scope, "vote"),
        "prompt": PROMPT,
        "most_letters": MOST_LETTERS,
        "judge_evaluations": judge_evaluations,
        "works": any(not one.is_over for one in judge_evaluations),
        "shares": shares_of(evaluations),
        "compare": compare_address(scope),
        "votes": Vote.objects.on(evaluations).count(),
        "agreement": Vote.objects.agreement(evaluations),
        "enough": ENOUGH,
    }


def address_of(scope: Scope, what: str) -> str:
    """A page of a study or a run by its verb."""
    return reverse(f"{'study' if isinstance(scope, Study) else 'training-run'}-{what}", args=[scope.pk])


def shares_of(evaluations: Any) -> list[dict[str, Any]]:
    """Each arm's share of right answers over its seeds, and of how many answers; the base model last."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in evaluations.select_related("run__study_arm"):
        if JUDGE in one.metrics:
            arm = one.run.study_arm.name if one.run.study_arm else one.run.name
            is_base = one.subject == Evaluation.Subject.BASE
            found.setdefault("" if is_base else arm, []).append(one.metrics)
    return [
        {
            "name": name,
            "share": sum(one[JUDGE] * one["judge_rows"] for one in metrics)
            / sum(one["judge_rows"] for one in metrics),
            "answers": sum(one["judge_rows"] for one in metrics),
        }
        for name, metrics in sorted(found.items(), key=lambda pair: not pair[0])
    ]


def compare_address(scope: Scope) -> str:
    """The compare page of these runs by the judge's verdicts; "" where there is nothing to compare."""
    if not isinstance(scope, Study):
        return ""
    arms = [arm for arm in scope.arms.all() if arm.final_runs()]
    runs = [run.pk for arm in arms for run in arm.final_runs()]
    reference = next((arm.final_runs()[0].pk for arm in arms if arm.name == scope.reference), "")
    query = f"runs={','.join(map(str, runs))}&metric={JUDGE}&reference={reference}"
    return f"{reverse('compare')}?{query}" if len(runs) > 1 else ""
