"""Base models: list, creation from a folder or hub id, and a page with the census and the presets."""

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
    """List the built-in model and the project's own, newest first."""
    here = models.Q(project=None) | models.Q(project=request.project)
    visible = BaseModel.objects.select_related("job").visible_to(request.user).filter(here)
    base_models, following = visible.page(request.GET.get("cursor"))
    context = {"rows": with_forecasts(base_models), "next": following}
    return render(request, "catalog/base_models/index.html", context)


@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Add a model from one of two forms: a folder under DATA_DIR/models, or a hub id."""
    request.project.require(request.user, Role.MANAGER)
    source = request.POST.get("source", "")
    folder_form = FolderForm(request.POST if source == "folder" else None, project=request.project)
    # Both forms have a field of one name, and labels find their fields by id.
    hub_form = HubForm(
        request.POST if source == "hub" else None, project=request.project, auto_id="id_hub_%s"
    )
    form = hub_form if source == "hub" else folder_form
    is_valid = form.is_valid()
    # Looked up before validation: the form that is sent again names a model that the project has by now.
    base_model = find_added(request.project, form) if form.is_bound else None
    if base_model is None and is_valid:
        base_model = add_base_model(request, BaseModel.Source(source), form)
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


def find_added(project: Project, form: FolderForm | HubForm) -> BaseModel | None:
    """Return the model that an earlier request with this form has added, if any."""
    job = Job.objects.find_by_idempotency_key(project, key_of(form))
    if job is None or job.kind != Job.Kind.INSPECT:
        return None
    hub_id, revision = (str(form.data.get(name, "")).strip() for name in ("hub_id", "revision"))
    if (job.spec.get("revision") or "") != revision:
        return None
    named = BaseModel.objects.filter(project=project, hub_id=hub_id)
    # A model that was inspected again has another job.
    return named.filter(job=job).first() or named.first()


def add_base_model(
    request: Request, source: BaseModel.Source, form: FolderForm | HubForm
) -> BaseModel | None:
    """Return the new row with its inspect job; None if another request has just added the same model."""
    values = {name: value for name, value in form.cleaned_data.items() if name != "idempotency_key"}
    # A form that is changed and sent again has the key of the earlier model.
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
        # The other request of a double click may have been faster.
        return find_added(request.project, form)


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """Show the census of a model, and the size of each preset on it."""
    base_model = BaseModel.objects.select_related("job").fetch(request.user, pk)
    census, outdated = load_census(base_model)
    context = {
        "base_model": base_model,
        "may_manage": request.user.projects(Role.MANAGER)
        .filter(pk=base_model.project_id or request.project.pk)
        .exists(),
        **queue_position_context(base_model.job),
        **failure_context(base_model),
        "census": census,
        "outdated": outdated,
        "groups": layer_rows(census) if census else [],
        "presets": preset_rows(base_model, census) if census else [],
        "rank": SHOWN_RANK,
        "recommended_label": RECOMMENDED_LABEL,
        "recommended_why": RECOMMENDED_WHY,
    }
    return render(request, "catalog/base_models/detail.html", context)


@require_GET
def progress(request: Request, pk: int) -> HttpResponse:
    """Show the progress of the inspection; reload the page when it is over."""
    base_model = BaseModel.objects.select_related("job").fetch(request.user, pk)
    if base_model.job is None or base_model.job.is_over:
        return HttpResponseClientRefresh()
    context = {"base_model": base_model, **queue_position_context(base_model.job)}
    return render(request, "catalog/base_models/_progress.html", context)


@require_POST
def inspect(request: Request, pk: int) -> HttpResponse:
    """Inspect the model's files again."""
    base_model = BaseModel.objects.select_related("job").fetch(request.user, pk)
    # The built-in model has no project: the manager of any project may inspect it.
    (base_model.project or request.project).require(request.user, Role.MANAGER)
    if base_model.job and not base_model.job.is_over:
        messages.info(request, _("%(name)s is being inspected already.") % {"name": base_model})
    else:
        base_model.inspect(request.user)
    return redirect(base_model)


def with_forecasts(base_models: list[BaseModel]) -> list[tuple[BaseModel, DeviceForecast | None]]:
    """Pair each model with the forecast of a run with default settings; None if it cannot be estimated."""
    recommended = TargetModuleConfig.objects.filter(project=None, slug=RECOMMENDED).first()
    forecaster = RunForecaster.load(base_models[0], None) if base_models else None
    rows: list[tuple[BaseModel, DeviceForecast | None]] = []
    for base_model in base_models:
        forecast = None
        if recommended and forecaster and base_model.is_ready and load_census(base_model)[0]:
            resolution = recommended.resolve(base_model)
            if not resolution.refusal:
                forecast = forecaster.for_base_model(base_model).forecast_best_device(
                    resolution, Hyperparameters()
                )
        rows.append((base_model, forecast))
    return rows


def failure_context(base_model: BaseModel) -> dict[str, str]:
    """Return advice after a failure, and the end of the log unless the model's files caused it."""
    job = base_model.job
    if job is None or job.state != State.FAILED:
        return {}
    log = "" if job.error_code == ModelError.code else job.log_tail(LOG_LINES)
    return {"advice": advice(job.error_code, INSPECT), "log": log}


def load_census(base_model: BaseModel) -> tuple[Census | None, str]:
    """Return the census, or None with the reason if it was made by another version."""
    if base_model.census is None:
        return None, ""
    try:
        return base_model.load_census(), ""
    except TargetError as outdated:
        return None, outdated.message


def layer_rows(census: Census) -> list[dict[str, Any]]:
    """Return the model's modules by role, with their number, layers and shapes."""
    lines = []
    by_role: dict[tuple[str, str], list[Group]] = {}
    for role in ROLES:
        for group in census.groups:
            # Layers of a vision tower may have the names of the language model's.
            tower = group.scope if group.scope in ("vision", "projector") else ""
            if group.role == role:
                by_role.setdefault((role, tower), []).append(group)
    for (role, tower), groups in sorted(by_role.items(), key=lambda item: bool(item[0][1])):
        layers = {layer for group in groups for layer in group.layers if group.scope in PRESET_SCOPES}
        lines.append(
            {
                "label": f"{ROLES[role]} ({SCOPES[tower]})" if tower else ROLES[role],
                "names": [group.pattern for group in groups],
                "modules": sum(group.modules for group in groups),
                "layers": len(layers),
                "shapes": sorted({f"{group.d_in:,} → {group.d_out:,}" for group in groups}),
            }
        )
    return lines


def preset_rows(base_model: BaseModel, census: Census) -> list[dict[str, Any]]:
    """Return each built-in preset on this model at rank 16: parameters, share, size, or its refusal."""
    lines = []
    for config in TargetModuleConfig.objects.filter(project=None):
        resolution = config.resolve(base_model)
        parameters = adapter_params(resolution.matched, SHOWN_RANK)
        lines.append(
            {
                "config": config,
                "found": resolution,
                "parameters": parameters,
                "share": parameters / census.parameters if census.parameters else 0,
                "bytes": adapter_bytes(resolution.matched, SHOWN_RANK),
                "remarks": [*resolution.notes, *resolution.expert_shares(SHOWN_RANK)],
            }
        )
    return lines
