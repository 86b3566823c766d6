"""Choices of where an adapter sits: what is known about them, the project's own, and how to make one."""

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

from dashboard.forms.plan import preset_cards
from dashboard.forms.target_module_configs import (
    RANK,
    TargetModuleConfigForm,
    exported,
    initial_from,
)
from dashboard.gate import Request
from dashboard.models import BaseModel, Role, TargetModuleConfig
from dashboard.models.study_evidence import evidence_of
from workers.census import ROLES
from workers.errors import TargetError
from workers.forecast import adapter_bytes
from workers.presets import RECOMMENDED_WHY


@require_GET
def index(request: Request) -> HttpResponse:
    """The project's own choices, and what is known for and against the recommended one."""
    own = TargetModuleConfig.objects.current().visible_to(request.user).filter(project=request.project)
    context = {
        "configs": own.order_by("name"),
        "recommended_why": RECOMMENDED_WHY,
        "project_evidence": evidence_of(request.project),
    }
    return render(request, "target_module_configs/index.html", context)


@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Tick layers of one base model, or paste names; see what they reach; save it."""
    request.project.require(request.user, Role.EDITOR)
    base_model = chosen_base_model(request)
    context: dict[str, Any] = {"base_models": ready(request), "base_model": base_model}
    if base_model is None:
        return render(request, "target_module_configs/create.html", context)
    if request.method == "GET":
        form = TargetModuleConfigForm(base_model=base_model, initial=prefilled(request, base_model))
        return render(request, "target_module_configs/create.html", {**context, **form_context(form)})
    saving = request.POST.get("action") != "explain"
    form = TargetModuleConfigForm(request.POST, request.FILES, base_model=base_model, saving=saving)
    config = saved(request, form) if form.is_valid() and saving else None
    if config is not None:
        return redirect(config)
    status = 200 if form.is_valid() else 422
    return render(
        request,
        "target_module_configs/create.html",
        {**context, **form_context(form), "explained": form.resolution},
        status=status,
    )


@require_POST
def explain(request: Request) -> HttpResponse:
    """What the form as it stands reaches: the live region alone."""
    request.project.require(request.user, Role.EDITOR)
    base_model = chosen_base_model(request)
    if base_model is None:
        return HttpResponse(status=204)
    form = TargetModuleConfigForm(request.POST, request.FILES, base_model=base_model)
    form.full_clean()
    context = {**form_context(form), "explained": form.resolution}
    return render(request, "target_module_configs/_explained.html", context)


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """One choice: what it reaches on each base model, its versions, and why it was made."""
    config = TargetModuleConfig.objects.select_related("made_by", "project").fetch(request.user, pk)
    versions = TargetModuleConfig.objects.filter(project=config.project_id, name=config.name)
    models = BaseModel.objects.select_related("job").visible_to(request.user).filter(job__state="succeeded")
    here = models.filter(Q(project=None) | Q(project=config.project_id))
    context = {
        "config": config,
        "cards": [(model, preset_cards([config], model, RANK)[0]) for model in here],
        "versions": versions.order_by("-version") if config.project_id else [],
        "rank": RANK,
        "selection": json.dumps(config.selection, indent=2) if config.selection else "",
        "may_edit": request.user.projects(Role.EDITOR)
        .filter(pk=config.project_id or request.project.pk)
        .exists(),
    }
    return render(request, "target_module_configs/detail.html", context)


@require_GET
def export(request: Request, pk: int) -> HttpResponse:
    """The choice as a JSON file, which the form takes back."""
    config = TargetModuleConfig.objects.fetch(request.user, pk)
    answer = HttpResponse(json.dumps(exported(config), indent=2) + "\n", content_type="application/json")
    name = slugify(config.name) or "choice"
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}-v{config.version}.json"'
    return answer


def ready(request: Request) -> list[BaseModel]:
    """Base models of this project, counted by this version, whose layers can be shown."""
    here = Q(project=None) | Q(project=request.project)
    found = BaseModel.objects.select_related("job").visible_to(request.user).filter(here)
    return [model for model in found.filter(job__state="succeeded").order_by("pk") if is_counted(model)]


def is_counted(base_model: BaseModel) -> bool:
    """Whether the census is there and can be read."""
    try:
        base_model.load_census()
    except TargetError:
        return False
    return True


def chosen_base_model(request: Request) -> BaseModel | None:
    """The model that the address or the form names, else the first; None where none is ready."""
    models = ready(request)
    wanted = (request.POST if request.method == "POST" else request.GET).get("base_model", "")
    return next((model for model in models if str(model.pk) == wanted), models[0] if models else None)


def prefilled(request: Request, base_model: BaseModel) -> dict[str, Any]:
    """The choice that ?from= names, on this model."""
    text = request.GET.get("from", "")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        return {}
    return initial_from(TargetModuleConfig.objects.fetch(request.user, int(text)), base_model)


def saved(request: Request, form: TargetModuleConfigForm) -> TargetModuleConfig | None:
    """The new choice or version; None when somebody else took its number at this moment."""
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
        form.add_error("name", _("Somebody has just saved another version. Save once more."))
        return None
    messages.success(request, _("%(name)s is saved. It can be chosen in every run.") % {"name": config.title})
    return config


def form_context(form: TargetModuleConfigForm) -> dict[str, Any]:
    """The form's page: its tree, and what the choice costs at the usual rank."""
    found = form.resolution
    size = adapter_bytes(found.matched, RANK)
    return {
        "form": form,
        "branches": form.branches(),
        "rank": RANK,
        "words": found.words(RANK, form.census.parameters, size) if found.matched else "",
        "matched": [(one, ROLES[one.role], one.params(RANK)) for one in found.matched],
        "left_out": form.left_out,
        "layers_total": form.census.num_layers,
    }
