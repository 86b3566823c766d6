"""Base models: list, creation from a folder or hub id, inspection, modules and presets."""

from __future__ import annotations

from typing import Annotated, Any, cast

from django import forms
from django.db import IntegrityError
from django.db.models import QuerySet
from django.utils.translation import gettext as _
from ninja import Query, Router, Schema, Status
from pydantic import ConfigDict

from dashboard.api.access import Call, Token, once
from dashboard.api.failures import Failure, failure_of
from dashboard.api.pagination import Newest, Rows, listing
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
    """The size of a target-module config on this model at the requested rank. `share` is 0 to 1."""

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


def serialize_base_model(base_model: BaseModel) -> BaseModelOut:
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
    """Return the built-in model and the project's own."""
    return BaseModel.objects.select_related("job").visible_to(request.auth)


def fetch(request: Call, pk: int) -> BaseModel:
    """Return the model if the caller may see it."""
    return BaseModel.objects.select_related("job").fetch(request.auth, pk)


def require_inspected(base_model: BaseModel) -> BaseModel:
    """Return the model; refuse one on which no run can start."""
    if not base_model.is_ready:
        message = _("%(name)s has not been inspected yet. Its state is: %(state)s.")
        raise Refusal(
            409, "not_ready", message % {"name": base_model, "state": base_model.state}, "base_model"
        )
    return base_model


@router.get("", response={200: list[BaseModelOut], **READING})
@listing(Newest)
def index(request: Call) -> Rows:
    """List the built-in base model and the project's own."""
    return Rows(visible(request), serialize_base_model)


@router.get("/{int:pk}", response={200: BaseModelOut, **READING})
def detail(request: Call, pk: int) -> BaseModelOut:
    """Return one base model."""
    return serialize_base_model(fetch(request, pk))


@router.post("", auth=Token(Role.MANAGER), response={202: BaseModelOut, **WRITING})
def create(request: Call, payload: BaseModelIn) -> Status[BaseModelOut]:
    """Add a folder below DATA_DIR/models, or a hub id, and queue its inspection."""
    job = once(request, Job.Kind.INSPECT, lambda key: add(request, payload, key))
    # A model that was inspected again has another job.
    mine = visible(request).filter(project=request.auth.project)
    base_model = mine.filter(job=job).first() or mine.filter(hub_id=payload.hub_id).order_by("-pk").first()
    if base_model is None:
        raise unknown("hub_id", _("base model"))
    return Status(202, serialize_base_model(base_model))


def add(request: Call, payload: BaseModelIn, key: str) -> Job:
    """Create the row and return its inspect job. The page's forms check the input."""
    source = BaseModel.Source.FOLDER if payload.folder else BaseModel.Source.HUB
    kind: type[FolderForm | HubForm] = FolderForm if payload.folder else HubForm
    form = kind(payload.dict(), project=request.auth.project)
    refuse_errors(form)
    if payload.folder and payload.revision:
        raise invalid("revision", _("A folder has no revision. Omit `revision`."))
    values = {"name": payload.name or payload.hub_id.rpartition("/")[2], **form.cleaned_data}
    # The API takes the key from a header.
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
    """Refuse the request with the first error of the form."""
    for field, problems in form.errors.items():
        raise invalid(None if field == "__all__" else field, str(problems[0]))


@router.post("/{int:pk}/inspect", auth=Token(Role.MANAGER), response={202: BaseModelOut, **WRITING})
def inspect(request: Call, pk: int, payload: Nothing | None = None) -> Status[BaseModelOut]:
    """Inspect the model again, unless an inspection is waiting or running."""
    base_model = fetch(request, pk)
    if base_model.job is None or base_model.job.is_over:
        once(
            request,
            Job.Kind.INSPECT,
            lambda key: base_model.inspect(request.auth.user, idempotency_key=key),
        )
    return Status(202, serialize_base_model(fetch(request, pk)))


@router.get("/{int:pk}/modules", response={200: ModulesAnswer, **READING})
def modules(request: Call, pk: int) -> dict[str, Any]:
    """Return the census: groups of layers of one kind and shape."""
    census = require_inspected(fetch(request, pk)).load_census()
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
    """Return the size of each target-module config on this model."""
    refuse_others(list(request.GET), ["r"])
    base_model = require_inspected(fetch(request, pk))
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
