"""The report of a study: verdict, method, and an appendix with everything that led to it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from dashboard.gate import Request
from dashboard.models import Decision, Study
from dashboard.models.evaluations.answers import AnswerPair, answer_pairs, load_answers, study_side
from dashboard.models.studies.results.limits import added_seeds
from dashboard.presenters.study_page import by_seed
from dashboard.views.studies.study_results import kept_parts, result_context

SHARED_ROWS = 5
# Of the measured versions, those that can change a number.
LIBRARIES = ("python", "torch", "transformers", "peft", "tokenizers", "safetensors")


@require_GET
def report(request: Request, pk: int) -> HttpResponse:
    """Show the result as a report: A4, without navigation."""
    study = Study.objects.with_names().fetch(request.user, pk)
    if not study.is_over or not study.result.arms:
        messages.info(request, _("The report is available when the study has come to a result."))
        return redirect(study)
    return render(request, "studies/report.html", report_context(request, study))


def report_context(
    request: HttpRequest, study: Study, *, anonymous: bool = False, with_rows: bool = False
) -> dict[str, Any]:
    """Return the parts of a report; `anonymous` names no person and no project."""
    parts = kept_parts(request, study)
    assembled = cache(lambda whole: appendix(whole, request.GET, with_rows=with_rows))

    def part(template: str) -> SafeString:
        return parts.part(
            template, lambda whole: {**assembled(whole), "anonymous": anonymous}, anonymous, with_rows
        )

    return {
        "study": study,
        "anonymous": anonymous,
        "head": part("studies/_report_head.html"),
        "rest": part("studies/_report_rest.html"),
        "decisions": Decision.objects.with_facts().filter(study=study),
    }


def appendix(study: Study, query: Mapping[str, str], *, with_rows: bool = False) -> dict[str, Any]:
    """Return the verdict with its appendix: all settings, hashes, versions and seeds."""
    compared = [one.arm for one in study.result.comparisons]
    return {
        **result_context(study, {"cost": query.get("cost", "")}),
        "study": study,
        "added_seeds": added_seeds(study),
        "versions": versions_of(study),
        "by_seed": by_seed(study),
        "shown_pairs": [(arm, example_pairs(study, arm)) for arm in compared] if with_rows else [],
    }


def example_pairs(study: Study, arm: str) -> list[AnswerPair]:
    """Return the first rows on which an arm and the reference differ, for a report that may show rows."""
    one, other = (study_side(study, name, study.seeds[0]) for name in (arm, study.reference))
    found = answer_pairs(study.metric, one, other, lower_is_better=study.lower_is_better)
    return load_answers([pair for pair in found if pair.gap][:SHARED_ROWS], one, other)


def versions_of(study: Study) -> list[tuple[str, str]]:
    """Return the library versions that its adapters were made with."""
    found: dict[str, set[str]] = {}
    for run in study.final_runs():
        versions = run.measured.get("versions", {}) if hasattr(run, "adapter") else {}
        for name in LIBRARIES:
            if name in versions:
                found.setdefault(name, set()).add(str(versions[name]))
    return [(name, ", ".join(sorted(found[name]))) for name in LIBRARIES if name in found]
