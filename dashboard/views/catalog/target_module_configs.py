"""Target-module configs: the evidence for presets, the project's own, and the form that creates one."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import messages
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.text import slugify
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from dashboard.forms.catalog.target_module_configs import (
    PREVIEW_RANK,
    TargetModuleConfigForm,
    export_config,
    initial_from_config,
)
from dashboard.forms.training.plan import preset_cards
from dashboard.gate import Request
from dashboard.models import BaseModel, Role, TargetModuleConfig
from dashboard.models.accounts.project import parse_id
from dashboard.models.studies.results.evidence import evidence_of
from dashboard.views.catalog.base_models import load_census
from workers.forecasting.adapter_size import adapter_bytes
from workers.target_modules.census import ROLES
from workers.target_modules.presets import RECOMMENDED_WHY


@require_GET
def index(request: Request) -> HttpResponse:
    """Show the project's own configs, and the evidence for and against the recommended preset."""
    own = TargetModuleConfig.objects.current().visible_to(request.user).filter(project=request.project)
    context = {
        "configs": own.order_by("name"),
        "recommended_why": RECOMMENDED_WHY,
        "project_evidence": evidence_of(request.project),
    }
    return render(request, "catalog/target_module_configs/index.html", context)


@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Select layers of one base model or paste names, preview what they match, and save them."""
    request.project.require(request.user, Role.EDITOR)
    base_model = chosen_base_model(request)
    context: dict[str, Any] = {"base_models": inspected_base_models(request), "base_model": base_model}
    if base_model is None:
        return render(request, "catalog/target_module_configs/create.html", context)
    if request.method == "GET":
        form = TargetModuleConfigForm(base_model=base_model, initial=initial_values(request, base_model))
        return render(request, "catalog/target_module_configs/create.html", {**context, **form_context(form)})
    saving = request.POST.get("action") != "explain"
    form = TargetModuleConfigForm(request.POST, request.FILES, base_model=base_model, saving=saving)
    config = save_config(request, form) if form.is_valid() and saving else None
    if config is not None:
        return redirect(config)
    status = 200 if form.is_valid() else 422
    return render(
        request,
        "catalog/target_module_configs/create.html",
        {**context, **form_context(form), "explained": form.resolution},
        status=status,
    )


@require_POST
def explain(request: Request) -> HttpResponse:
    """Show what the form's present values match: the live region alone."""
    request.project.require(request.user, Role.EDITOR)
    base_model = chosen_base_model(request)
    if base_model is None:
        return HttpResponse(status=204)
    form = TargetModuleConfigForm(request.POST, request.FILES, base_model=base_model)
    form.full_clean()
    context = {**form_context(form), "explained": form.resolution}
    return render(request, "catalog/target_module_configs/_explained.html", context)


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """Show one config: what it matches on each base model, its versions and its evidence."""
    config = TargetModuleConfig.objects.select_related("made_by", "project").fetch(request.user, pk)
    versions = TargetModuleConfig.objects.filter(project=config.project_id, name=config.name)
    models = BaseModel.objects.select_related("job").visible_to(request.user).filter(job__state="succeeded")
    here = models.filter(Q(project=None) | Q(project=config.project_id))
    context = {
        "config": config,
        "cards": [(model, preset_cards([config], model, PREVIEW_RANK)[0]) for model in here],
        "versions": versions.order_by("-version") if config.project_id else [],
        "rank": PREVIEW_RANK,
        "selection": json.dumps(config.selection, indent=2) if config.selection else "",
        "may_edit": request.user.projects(Role.EDITOR)
        .filter(pk=config.project_id or request.project.pk)
        .exists(),
    }
    return render(request, "catalog/target_module_configs/detail.html", context)


@require_GET
def export(request: Request, pk: int) -> HttpResponse:
    """Return the config as a JSON file, which the form imports."""
    config = TargetModuleConfig.objects.fetch(request.user, pk)
    answer = HttpResponse(json.dumps(export_config(config), indent=2) + "\n", content_type="application/json")
    name = slugify(config.name) or "choice"
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}-v{config.version}.json"'
    return answer


def inspected_base_models(request: Request) -> list[BaseModel]:
    """Return base models of this project with a census of the present version."""
    here = Q(project=None) | Q(project=request.project)
    visible = BaseModel.objects.select_related("job").visible_to(request.user).filter(here)
    return [model for model in visible.filter(job__state="succeeded").order_by("pk") if load_census(model)[0]]


def chosen_base_model(request: Request) -> BaseModel | None:
    """Return the model that the request names, else the first; None if there is none."""
    models = inspected_base_models(request)
    wanted = (request.POST if request.method == "POST" else request.GET).get("base_model", "")
    return next((model for model in models if str(model.pk) == wanted), models[0] if models else None)


def initial_values(request: Request, base_model: BaseModel) -> dict[str, Any]:
    """Return initial values from the config that ?from= names, on this model."""
    pk = parse_id(request.GET.get("from", ""))
    if pk is None:
        return {}
    return initial_from_config(TargetModuleConfig.objects.fetch(request.user, pk), base_model)


def save_config(request: Request, form: TargetModuleConfigForm) -> TargetModuleConfig | None:
    """Return the new config or version; None if another request took the version number just now."""
    values = form.cleaned_data
    try:
        with transaction.atomic():
            config = TargetModuleConfig.objects.compose(
                project=request.project,
                by=request.user,
                name=values["name"],
                selection=values["selection"],
                description=values["description"],
                evidence=values["evidence"],
            )
    except IntegrityError:
        form.add_error("name", _("Another version was saved at the same time. Save again."))
        return None
    messages.success(request, _("Saved %(name)s. You can now choose it for a run.") % {"name": config.title})
    return config


def form_context(form: TargetModuleConfigForm) -> dict[str, Any]:
    """Return the form's context: its layer tree, and the size of the adapter at the preview rank."""
    resolution = form.resolution
    size = adapter_bytes(resolution.matched, PREVIEW_RANK)
    return {
        "form": form,
        "layer_rows": form.layer_rows(),
        "rank": PREVIEW_RANK,
        "summary": resolution.summary(PREVIEW_RANK, form.census.parameters, size)
        if resolution.matched
        else "",
        "matched": [(item, ROLES[item.role], item.params(PREVIEW_RANK)) for item in resolution.matched],
        "ignored_settings": form.ignored_settings,
        "layers_total": form.census.num_layers,
    }
