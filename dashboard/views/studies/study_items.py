"""Single test rows of a study: two arms' answers side by side, and confused labels."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from dashboard.forms.studies.study_results import ItemsForm
from dashboard.gate import Request
from dashboard.models import Study
from dashboard.models.accounts.project import parse_id
from dashboard.models.evaluations.answers import (
    AnswerPage,
    AnswerQuery,
    Side,
    answer_page,
    answer_pairs,
    confusion_matrix,
    study_side,
)

ITEMS_SHOWN = 10
NOTHING = AnswerPage([], {}, 0, 1, 1)


@require_GET
def items(request: Request, pk: int) -> HttpResponse:
    """Show two arms' answers on the same rows, filtered and searched; every choice is in the address."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    if not study.is_over or not study.result.arms:
        messages.info(request, _("Answers are available when the study has a result."))
        return redirect(study)
    form = ItemsForm(study, request.GET)
    one: Side = {}
    page = NOTHING
    if form.is_valid():
        asked = form.cleaned_data
        one, other = (study_side(study, asked[name], asked["seed"]) for name in ("one", "other"))
        choice = AnswerQuery(
            asked["show"], asked["text"], asked["order"], parse_id(request.GET.get("page", "")) or 1
        )
        lower = study.lower_is_better
        pairs = answer_pairs(study.metric, one, other, lower_is_better=lower)
        page = answer_page(pairs, one, other, choice, size=ITEMS_SHOWN, lower_is_better=lower)
    context = {
        "study": study,
        "form": form,
        "page": page,
        "one": form["one"].value(),
        "other": form["other"].value(),
        "confusion": confusion_matrix(one),
    }
    return render(request, "studies/items.html", context)
