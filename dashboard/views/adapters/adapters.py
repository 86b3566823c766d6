"""Adapters: the list, an adapter's page, its stage, and the download."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST, require_safe

from dashboard.charts import curves, forgetting_charts
from dashboard.downloads import ranged_file
from dashboard.forms.adapters import StageForm
from dashboard.forms.exports import PushForm
from dashboard.gate import Request
from dashboard.models import Adapter, BaseModel, Role, SavedView
from dashboard.models.accounts.project import parse_id
from dashboard.models.adapters.adapter import FILES_MISSING
from dashboard.models.evaluations import forgetting
from dashboard.presenters import serving
from dashboard.presenters.exports import exports_context
from dashboard.views.evaluations.evaluations import unscored_run_notice
from dashboard.views.training.run_list import csv_of, list_context
from workers.contract.errors import ModelError

# A list for choosing by hand; older adapters are served by editing the command.
MOST_SERVED = 50


@require_GET
def index(request: Request) -> HttpResponse:
    """List the project's adapters, in the same table as the runs."""
    return render(request, "adapters/index.html", list_context(request, SavedView.Page.ADAPTERS))


@require_GET
def export(request: Request) -> HttpResponse:
    """Return the rows and columns of the list's address as CSV, with the rows of all its pages."""
    return csv_of(request, SavedView.Page.ADAPTERS, "adapters.csv")


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """Show an adapter's facts, lineage, files, scores and loading code."""
    adapter = Adapter.objects.with_facts().prefetch_related("run__evaluations__job").fetch(request.user, pk)
    return page_of(request, adapter)


def page_of(
    request: Request, adapter: Adapter, status: int = 200, push_form: PushForm | None = None
) -> HttpResponse:
    """Render an adapter's page, also below an error message."""
    versions = Adapter.objects.filter(project=adapter.project, name=adapter.name).order_by("-version")
    recipes = serving.recipes(adapter)
    context: dict[str, Any] = {
        "adapter": adapter,
        "run": adapter.run,
        "versions": versions,
        "score_rows": curves.score_rows(adapter.run),
        "forgetting": forgetting_charts.table({str(adapter): forgetting.run_forgetting(adapter.run)}),
        "unscored": unscored_run_notice(adapter.run),
        "settled": adapter.run.is_settled,
        "form": StageForm(initial={"stage": adapter.stage}),
        "decisions": adapter.decisions.with_facts(),  # type: ignore[attr-defined]
        "recipes": recipes,
        **exports_context(adapter),
        "push_form": push_form or PushForm(adapter),
        "is_offline": settings.HF_HUB_OFFLINE,
        "smoke_test": serving.smoke_test(adapter, recipes),
        "may_edit": request.user.has_role(Role.EDITOR, adapter.project_id),
        "may_manage": request.user.has_role(Role.MANAGER, adapter.project_id),
    }
    return render(request, "adapters/detail.html", context, status=status)


@require_POST
def stage(request: Request, pk: int) -> HttpResponse:
    """Change the stage of an adapter."""
    adapter = Adapter.objects.fetch(request.user, pk, Role.MANAGER)
    form = StageForm(request.POST)
    if form.is_valid():
        adapter.set_stage(form.cleaned_data["stage"])
        text = _("Stage of %(adapter)s: %(stage)s.")
        messages.success(request, text % {"adapter": adapter, "stage": adapter.get_stage_display()})
    else:
        messages.error(request, _("Choose the stage draft, approved or retired."))
    return redirect(adapter)


@require_safe
def download(request: Request, pk: int) -> HttpResponseBase:
    """Download the adapter, resumable.

    A zip; with ?dtype=bfloat16 its weights are rounded to half their size. ?format=gguf: one GGUF file.
    """
    adapter = Adapter.objects.fetch(request.user, pk)
    half = request.GET.get("dtype") == "bfloat16"
    try:
        if request.GET.get("format") == "gguf":
            return ranged_file(request, adapter.gguf(), adapter.gguf_name())
        return ranged_file(request, adapter.archive(half=half), adapter.archive_name(half=half))
    except FileNotFoundError:
        messages.error(request, FILES_MISSING)
        return page_of(request, adapter, status=404)
    except ModelError as error:
        messages.error(request, error.message)
        return page_of(request, adapter, status=409)


@require_GET
def serve(request: Request) -> HttpResponse:
    """Show the command that serves several adapters of one base model; ?base= and ?adapter= choose."""
    adapters = Adapter.objects.visible_to(request.user).filter(project=request.project)
    adapters = adapters.with_facts().exclude(stage=Adapter.Stage.RETIRED)
    bases = list(BaseModel.objects.filter(adapters__in=adapters).distinct().order_by("name"))
    number = parse_id(request.GET.get("base", ""))
    base = next((base for base in bases if base.pk == number), bases[0] if bases else None)
    candidates = list(adapters.filter(base_model=base)[:MOST_SERVED])
    asked = set(request.GET.getlist("adapter"))
    chosen = [adapter for adapter in candidates if str(adapter.pk) in asked]
    if "adapter" not in request.GET:
        chosen = [adapter for adapter in candidates if adapter.stage == Adapter.Stage.APPROVED]
    context = {
        "bases": bases,
        "base": base,
        "candidates": candidates,
        "chosen": chosen,
        "server": serving.shared_server(base, chosen) if base and chosen else None,
    }
    return render(request, "adapters/serve.html", context)
