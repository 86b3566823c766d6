"""Single test rows of a study: what two of its subjects answered, and which labels get mixed up."""

from __future__ import annotations

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from dashboard.forms.study_results import ItemsForm
from dashboard.gate import Request
from dashboard.models import Study
from dashboard.models.study_items import BASE, Pair, confusion, pairs

ITEMS_SHOWN = 10


@require_GET
def items(request: Request, pk: int) -> HttpResponse:
    """What two subjects answered on the same rows, filtered and searched; the choice is in the address."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    if not study.is_over or not study.result.get("arms"):
        messages.info(request, _("Answers are shown when the study has come to a result."))
        return redirect(study)
    form = ItemsForm(study, request.GET)
    found = chosen_pairs(study, form) if form.is_valid() else []
    whole = pairs(study, form["one"].value(), BASE, int(form["seed"].value())) if form.is_valid() else []
    query = request.GET.copy()
    query.pop("page", None)
    context = {
        "study": study,
        "form": form,
        "page": Paginator(found, ITEMS_SHOWN).get_page(request.GET.get("page")),
        "query": query.urlencode(),
        "one": form["one"].value(),
        "other": form["other"].value(),
        "confusion": confusion([pair.one for pair in whole]),
    }
    return render(request, "studies/items.html", context)


def chosen_pairs(study: Study, form: ItemsForm) -> list[Pair]:
    """The rows that the form asks for: the largest gaps first where it asks for gaps."""
    asked = form.cleaned_data
    found = pairs(study, asked["one"], asked["other"], asked["seed"])
    text = asked["text"].casefold()
    if text:
        found = [
            pair
            for pair in found
            if any(
                text in field.casefold()
                for field in (pair.one.prompt, pair.one.expected, pair.one.output, pair.other.output)
            )
        ]
    if asked["show"] == "all":
        return found
    wanted = {"wins": (1,), "losses": (-1,), "changed": (1, -1)}[asked["show"]]
    found = [pair for pair in found if (pair.gap > 0) - (pair.gap < 0) in wanted]
    return sorted(found, key=lambda pair: -abs(pair.gap))
