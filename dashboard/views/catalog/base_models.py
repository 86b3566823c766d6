"""Base models: list, add a folder or a hub id, one model's census with what each preset means on it."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db import IntegrityError, models
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import HttpResponseClientRefresh

from dashboard.forms.catalog.base_models import FolderForm, HubForm
from dashboard.gate import Request
from dashboard.models import BaseModel, Job, Project, Role, State, TargetModuleConfig
from dashboard.models.catalog.base_model import model_folders
from dashboard.models.training.forecast import DeviceForecast, RunForecaster
from dashboard.presenters.queue_board import queue_position_context
from dashboard.views.training.launch import key_of
from workers.contract.errors import INSPECT, ModelError, TargetError, advice
from workers.contract.hyperparameters import Hyperparameters
from workers.forecasting.adapter_size import adapter_bytes, adapter_params
from workers.target_modules.census import PRESET_SCOPES, ROLES, SCOPES, Census, Group
from workers.target_modules.presets import RECOMMENDED, RECOMMENDED_LABEL, RECOMMENDED_WHY

SHOWN_RANK = 16
LOG_LINES = 50


@require_GET
def index(request: Request) -> HttpResponse:
    """The built-in model and the project's own ones, newest first."""
    here = models.Q(project=None) | models.Q(project=request.project)
    visible = BaseModel.objects.select_related("job").visible_to(request.user).filter(here)
    base_models, following = visible.page(request.GET.get("cursor"))
    context = {"rows": needs_of(base_models), "next": following}
    return render(request, "catalog/base_models/index.html", context)


@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Add a model from one of two forms: a folder that the operator put in place, or a hub id."""
    request.project.require(request.user, Role.MANAGER)
    source = request.POST.get("source", "")
    folder_form = FolderForm(request.POST if source == "folder" else None, project=request.project)
    # Both forms have a field of one name, and labels find their fields by id.
    hub_form = HubForm(
        request.POST if source == "hub" else None, project=request.project, auto_id="id_hub_%s"
    )
    form = hub_form if source == "hub" else folder_form
    is_valid = form.is_valid()
    # Asked first: sent again, the form names a model that the project has by now.
    base_model = added_with(request.project, form) if form.is_bound else None
    if base_model is None and is_valid:
        base_model = add(request, BaseModel.Source(source), form)
    if base_model:
        return redirect(base_model)
    if is_valid:
        form.add_error("hub_id", _("This project already has that base model."))
    context = {
        "folder_form": folder_form,
        "hub_form": hub_form,
        "bound": form if form.is_bound else None,
        "folders": model_folders(),
        "models_folder": settings.DATA_DIR / "models",
    }
    return render(request, "catalog/base_models/create.html", context, status=422 if request.POST else 200)


def added_with(project: Project, form: FolderForm | HubForm) -> BaseModel | None:
    """The model that this form has added already, if it was sent before."""
    job = Job.objects.find_by_idempotency_key(project, key_of(form))
    if job is None or job.kind != Job.Kind.INSPECT:
        return None
    asked = {name: str(form.data.get(name, "")).strip() for name in ("hub_id", "revision")}
    if (job.spec.get("revision") or "") != asked["revision"]:
        return None
    named = BaseModel.objects.filter(project=project, hub_id=asked["hub_id"])
    # Inspected again since, it has another job.
    return named.filter(job=job).first() or named.first()


def add(request: Request, source: BaseModel.Source, form: FolderForm | HubForm) -> BaseModel | None:
    """The new row with its inspect job, or None when somebody else has just added the same model."""
    values = {name: value for name, value in form.cleaned_data.items() if name != "idempotency_key"}
    # Whoever goes back and asks for another model sends that under the old key.
    key = "" if Job.objects.find_by_idempotency_key(request.project, key_of(form)) else key_of(form)
    name = values.get("name") or values["hub_id"].rpartition("/")[2]
    try:
        return BaseModel.objects.add(
            project=request.project,
            by=request.user,
            source=source,
            idempotency_key=key,
            **{**values, "name": name},
        )
    except IntegrityError:
        # Perhaps the other request of a double click was quicker by a moment.
        return added_with(request.project, form)


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """What the inspect job found, and what each preset means on this model."""
    base_model = BaseModel.objects.select_related("job").fetch(request.user, pk)
    census, outdated = counted(base_model)
    context = {
        "base_model": base_model,
        "may_manage": request.user.projects(Role.MANAGER)
        .filter(pk=base_model.project_id or request.project.pk)
        .exists(),
        **queue_position_context(base_model.job),
        **cause(base_model),
        "census": census,
        "outdated": outdated,
        "groups": coverage(census) if census else [],
        "presets": preset_lines(base_model, census) if census else [],
        "rank": SHOWN_RANK,
        "recommended_label": RECOMMENDED_LABEL,
        "recommended_why": RECOMMENDED_WHY,
    }
    return render(request, "catalog/base_models/detail.html", context)


@require_GET
def progress(request: Request, pk: int) -> HttpResponse:
    """How far the inspection is; the whole page comes anew once it is over."""
    base_model = BaseModel.objects.select_related("job").fetch(request.user, pk)
    if base_model.job is None or base_model.job.is_over:
        return HttpResponseClientRefresh()
    context = {"base_model": base_model, **queue_position_context(base_model.job)}
    return render(request, "catalog/base_models/_progress.html", context)


@require_POST
def inspect(request: Request, pk: int) -> HttpResponse:
    """Look at the model's files once more: they may have been completed, or the way of counting changed."""
    base_model = BaseModel.objects.select_related("job").fetch(request.user, pk)
    # The built-in model belongs to nobody: whoever manages a project may have it counted again.
    (base_model.project or request.project).require(request.user, Role.MANAGER)
    if base_model.job and not base_model.job.is_over:
        messages.info(request, _("%(name)s is being inspected already.") % {"name": base_model})
    else:
        base_model.inspect(request.user)
    return redirect(base_model)


def needs_of(base_models: list[BaseModel]) -> list[tuple[BaseModel, DeviceForecast | None]]:
    """Each with what a fine-tune by the form's defaults would need; None where that cannot be estimated."""
    recommended = TargetModuleConfig.objects.filter(project=None, slug=RECOMMENDED).first()
    forecaster = RunForecaster.load(base_models[0], None) if base_models else None
    found: list[tuple[BaseModel, DeviceForecast | None]] = []
    for base_model in base_models:
        forecast = None
        if recommended and forecaster and base_model.is_ready and counted(base_model)[0]:
            resolution = recommended.resolve(base_model)
            if not resolution.refusal:
                forecast = forecaster.for_base_model(base_model).forecast_best_device(
                    resolution, Hyperparameters()
                )
        found.append((base_model, forecast))
    return found


def cause(base_model: BaseModel) -> dict[str, str]:
    """What helps after a failure: advice, and the log's end where the files themselves are not at fault."""
    job = base_model.job
    if job is None or job.state != State.FAILED:
        return {}
    log = "" if job.error_code == ModelError.code else job.log_tail(LOG_LINES)
    return {"advice": advice(job.error_code, INSPECT), "log": log}


def counted(base_model: BaseModel) -> tuple[Census | None, str]:
    """The census, or None and, where another version counted it, the sentence that says so."""
    if base_model.census is None:
        return None, ""
    try:
        return base_model.load_census(), ""
    except TargetError as outdated:
        return None, outdated.message


def coverage(census: Census) -> list[dict[str, Any]]:
    """The model's layers by role: how many modules, in how many layers, which shapes."""
    lines = []
    found: dict[tuple[str, str], list[Group]] = {}
    for role in ROLES:
        for group in census.groups:
            # A tower's layers are no layers of the language model, whatever their names.
            apart = group.scope if group.scope in ("vision", "projector") else ""
            if group.role == role:
                found.setdefault((role, apart), []).append(group)
    for (role, apart), groups in sorted(found.items(), key=lambda item: bool(item[0][1])):
        layers = {layer for group in groups for layer in group.layers if group.scope in PRESET_SCOPES}
        lines.append(
            {
                "label": f"{ROLES[role]} ({SCOPES[apart]})" if apart else ROLES[role],
                "names": [group.pattern for group in groups],
                "modules": sum(group.modules for group in groups),
                "layers": len(layers),
                "shapes": sorted({f"{group.d_in:,} → {group.d_out:,}" for group in groups}),
            }
        )
    return lines


def preset_lines(base_model: BaseModel, census: Census) -> list[dict[str, Any]]:
    """Each built-in preset on this model at rank 16: modules, parameters, share, size, or its refusal."""
    lines = []
    for config in TargetModuleConfig.objects.filter(project=None):
        found = config.resolve(base_model)
        parameters = adapter_params(found.matched, SHOWN_RANK)
        lines.append(
            {
                "config": config,
                "found": found,
                "parameters": parameters,
                "share": parameters / census.parameters if census.parameters else 0,
                "bytes": adapter_bytes(found.matched, SHOWN_RANK),
                "remarks": [*found.notes, *found.expert_shares(SHOWN_RANK, 2 * SHOWN_RANK)],
            }
        )
    return lines
