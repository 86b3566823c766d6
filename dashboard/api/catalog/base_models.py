"""Base models: list, look, add a folder or a hub id, inspect again, and what the presets mean on one."""

from __future__ import annotations

from typing import Annotated, Any, cast

from django import forms
from django.db import IntegrityError
from django.db.models import QuerySet
from django.utils.translation import gettext as _
from ninja import Query, Router, Schema, Status
from ninja.pagination import paginate
from pydantic import ConfigDict

from dashboard.api.access import Call, Token, once
from dashboard.api.failures import Failure, failure_of
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING, WRITING, Nothing, Refusal, invalid, refuse_others, unknown
from dashboard.api.texts import Name
from dashboard.forms.catalog.base_models import FolderForm, HubForm
from dashboard.forms.training.plan import preset_cards
from dashboard.models import BaseModel, Job, Role, TargetModuleConfig
from workers.contract.hyperparameters import LIMITS

router = Router()
Rank = Annotated[int, Query(ge=1, le=int(LIMITS["r"][1]))]


class BaseModelOut(Schema):
    """A frozen pretrained model. `parameters` is known once its inspect job has succeeded."""

    id: int
    name: str
    hub_id: str
    revision: str | None
    parameters: int | None
    state: str
    error: Failure | None


class BaseModelIn(Schema):
    """A folder below DATA_DIR/models with its name and public name, or a hub id with or without revision."""

    model_config = ConfigDict(extra="forbid")

    hub_id: str
    folder: str = ""
    name: Name = ""
    revision: str = ""


class ModulesOut(Schema):
    """Layers of one kind and shape; `pattern` has a star for the layer's number."""

    pattern: str
    role: str
    scope: str
    modules: int
    d_in: int
    d_out: int


class PresetOut(Schema):
    """What one choice of target modules means on this model at the asked rank. `share` is 0 to 1."""

    id: int
    slug: str | None
    name: str
    target_modules: list[str]
    modules: int
    trainable_parameters: int
    share: float
    adapter_bytes: int
    notes: list[str]
    refusal: str | None


class ModulesAnswer(Schema):
    """The census of a base model."""

    data: list[ModulesOut]
    next: None = None


class PresetsAnswer(Schema):
    """All presets, in the order of the form."""

    data: list[PresetOut]
    next: None = None


def shown(base_model: BaseModel) -> BaseModelOut:
    """The object as every answer has it."""
    return BaseModelOut(
        id=base_model.pk,
        name=base_model.name,
        hub_id=base_model.hub_id,
        revision=base_model.revision or None,
        parameters=base_model.parameters,
        state=base_model.state,
        error=failure_of(base_model.job),
    )


def visible(request: Call) -> QuerySet[BaseModel]:
    """The built-in model and the project's own ones."""
    return BaseModel.objects.select_related("job").visible_to(request.auth)


def fetch(request: Call, pk: int) -> BaseModel:
    """The model, if the caller may see it."""
    return BaseModel.objects.select_related("job").fetch(request.auth, pk)


def inspected(base_model: BaseModel) -> BaseModel:
    """The model, if runs can start on it."""
    if not base_model.is_ready:
        message = _("%(name)s has not been inspected yet. Its state is: %(state)s.")
        raise Refusal(
            409, "not_ready", message % {"name": base_model, "state": base_model.state}, "base_model"
        )
    return base_model


@router.get("", response={200: list[BaseModelOut], **READING})
@paginate(Newest)
def index(request: Call) -> Rows:
    """The built-in base model and the project's own ones."""
    return Rows(visible(request), shown)


@router.get("/{int:pk}", response={200: BaseModelOut, **READING})
def detail(request: Call, pk: int) -> BaseModelOut:
    """One base model."""
    return shown(fetch(request, pk))


@router.post("", auth=Token(Role.MANAGER), response={202: BaseModelOut, **WRITING})
def create(request: Call, payload: BaseModelIn) -> Status[BaseModelOut]:
    """Add a folder that the operator put below DATA_DIR/models, or a hub id; an inspect job counts it."""
    job = once(request, Job.Kind.INSPECT, lambda key: add(request, payload, key))
    # Inspected again since, the model has another job.
    mine = visible(request).filter(project=request.auth.project)
    found = mine.filter(job=job).first() or mine.filter(hub_id=payload.hub_id).order_by("-pk").first()
    if found is None:
        raise unknown("hub_id", _("base model"))
    return Status(202, shown(found))


def add(request: Call, payload: BaseModelIn, key: str) -> Job:
    """The inspect job of the new row. Checked by the page's own forms."""
    source = BaseModel.Source.FOLDER if payload.folder else BaseModel.Source.HUB
    kind: type[FolderForm | HubForm] = FolderForm if payload.folder else HubForm
    form = kind(payload.dict(), project=request.auth.project)
    refuse_errors(form)
    if payload.folder and payload.revision:
        raise invalid("revision", _("A folder has no revision. Leave it out."))
    values = {"name": payload.name or payload.hub_id.rpartition("/")[2], **form.cleaned_data}
    # Here the key comes in a header.
    values.pop("idempotency_key", None)
    try:
        row = BaseModel.objects.add(
            project=request.auth.project, by=request.auth.user, source=source, idempotency_key=key, **values
        )
    except IntegrityError as error:
        if Job.objects.find_by_idempotency_key(request.auth.project, key):
            raise
        raise invalid("hub_id", _("This project already has that base model.")) from error
    return cast("Job", row.job)


def refuse_errors(form: forms.Form) -> None:
    """Say the first thing that a form does not accept."""
    for field, problems in form.errors.items():
        raise invalid(None if field == "__all__" else field, str(problems[0]))


@router.post("/{int:pk}/inspect", auth=Token(Role.MANAGER), response={202: BaseModelOut, **WRITING})
def inspect(request: Call, pk: int, payload: Nothing | None = None) -> Status[BaseModelOut]:
    """Count the model's modules once more. While an inspection waits or works, none is added."""
    base_model = fetch(request, pk)
    if base_model.job is None or base_model.job.is_over:
        once(
            request,
            Job.Kind.INSPECT,
            lambda key: base_model.inspect(request.auth.user, idempotency_key=key),
        )
    return Status(202, shown(fetch(request, pk)))


@router.get("/{int:pk}/modules", response={200: ModulesAnswer, **READING})
def modules(request: Call, pk: int) -> dict[str, Any]:
    """What the inspect job counted, in groups of equal layers."""
    census = inspected(fetch(request, pk)).load_census()
    groups = [
        ModulesOut(
            pattern=group.pattern,
            role=group.role,
            scope=group.scope,
            modules=group.modules,
            d_in=group.d_in,
            d_out=group.d_out,
        )
        for group in census.groups
    ]
    return {"data": groups}


@router.get("/{int:pk}/presets", response={200: PresetsAnswer, **READING})
def presets(request: Call, pk: int, r: Rank = 16) -> dict[str, Any]:
    """What each choice of target modules means on this model."""
    refuse_others(list(request.GET), ["r"])
    base_model = inspected(fetch(request, pk))
    cards = preset_cards(list(TargetModuleConfig.objects.current().visible_to(request.auth)), base_model, r)
    lines = [
        PresetOut(
            id=card.config.pk,
            slug=card.config.slug,
            name=card.config.name,
            target_modules=list(card.resolution.target_modules),
            modules=card.resolution.modules,
            trainable_parameters=card.trainable_parameters,
            share=card.share,
            adapter_bytes=card.adapter_bytes,
            notes=list(card.resolution.notes),
            refusal=card.resolution.refusal or None,
        )
        for card in cards
    ]
    return {"data": lines}
