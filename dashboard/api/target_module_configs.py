"""Choices of target modules: the built-in presets, and what each costs on a base model."""

from typing import Annotated, Any

from django.db import transaction
from django.http import Http404
from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from ninja.pagination import paginate
from pydantic import AfterValidator, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from dashboard.api.access import Call, done_before, first_time
from dashboard.api.base_models import Rank, fetch, inspected
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING, WRITING, invalid, unknown
from dashboard.api.texts import Name, storable
from dashboard.forms.plan import preset_cards
from dashboard.models import BaseModel, TargetModuleConfig
from dashboard.models.target_module_config import TEXT_LENGTH
from workers.errors import SpecError
from workers.selections import MAX_ENTRIES, Selection

# No postponed annotations here: below `paginate` the framework could not resolve `Rank` by its name.
router = Router()
Text = Annotated[StrictStr, Field(max_length=TEXT_LENGTH), AfterValidator(storable)]


class MatchedOut(Schema):
    """Layers of one group that are adapted: `group` is their name with `*` for the layer number."""

    group: str
    role: str
    layers: list[int]
    d_in: int
    d_out: int


class TargetModuleConfigOut(Schema):
    """A choice of target modules. The two numbers are null where this base model lacks such layers.

    `resolved` holds PEFT's own arguments at the asked rank, with a lora_alpha of 2r; `warnings` are sentences
    to read before a run, and the reason where the choice does not fit this model. `confirm` holds those
    warnings that a run has to accept with `confirmed`.
    """

    id: int
    slug: str | None
    name: str
    version: int
    trainable_parameters: int | None
    adapter_bytes: int | None
    resolved: dict[str, Any] | None
    matched: list[MatchedOut]
    warnings: list[str]
    confirm: list[str]


class TargetModuleConfigIn(Schema):
    """A choice of the project's own: ends of layers' names, as PEFT takes them, on this base model.

    Under a name that the project has already it becomes the next version; runs keep theirs.
    `layers_to_transform` counts from 0; left out, it means all layers. The patterns give names a rank or
    alpha of their own.
    """

    model_config = ConfigDict(extra="forbid")

    name: Annotated[Name, Field(min_length=1)]
    base_model: StrictInt | None = None
    target_modules: list[StrictStr] = Field(max_length=MAX_ENTRIES)
    layers_to_transform: list[StrictInt] = Field(default=[], max_length=10_000)
    rank_pattern: dict[str, StrictInt] = {}
    alpha_pattern: dict[str, StrictInt | StrictFloat] = {}
    description: Text = ""
    evidence: Text = ""


def shown(config: TargetModuleConfig, base_model: BaseModel, r: int) -> TargetModuleConfigOut:
    """The object with its forecast on this model."""
    card = preset_cards([config], base_model, r)[0]
    found = card.resolution
    works = not found.refusal
    return TargetModuleConfigOut(
        id=config.pk,
        slug=config.slug,
        name=config.name,
        version=config.version,
        trainable_parameters=card.trainable_parameters if works else None,
        adapter_bytes=card.adapter_bytes if works else None,
        resolved=found.arguments(r, 2 * r).to_dict() if works else None,
        matched=[
            MatchedOut(
                group=one.pattern,
                role=one.role,
                layers=list(one.layers),
                d_in=one.group.d_in,
                d_out=one.group.d_out,
            )
            for one in (found.matched if works else ())
        ],
        warnings=[*found.notes, *found.shares(r, 2 * r), *found.confirmations] if works else [found.refusal],
        confirm=list(found.confirmations) if works else [],
    )


@router.get("", response={200: list[TargetModuleConfigOut], **READING})
@paginate(Newest)
def index(request: Call, base_model: int | None = None, r: Rank = 16) -> Rows:
    """All choices with their forecast on `base_model` (the built-in one where left out) at rank `r`."""
    model = inspected(chosen_base_model(request, base_model))
    configs = TargetModuleConfig.objects.current().visible_to(request.auth)
    return Rows(configs, lambda config: shown(config, model, r))


@router.post("", response={201: TargetModuleConfigOut, **WRITING})
def create(request: Call, payload: TargetModuleConfigIn) -> Status[TargetModuleConfigOut]:
    """A choice of the project's own, or its next version. It has to fit the base model that it is made on."""
    model = inspected(chosen_base_model(request, payload.base_model))
    names = ("target_modules", "layers_to_transform", "rank_pattern", "alpha_pattern")
    try:
        selection = Selection.from_dict({name: getattr(payload, name) for name in names})
    except SpecError as error:
        raise invalid(error.field, error.message) from error
    if refusal := selection.resolve(model.load_census()).refusal:
        raise invalid("target_modules", refusal)
    if TargetModuleConfig.is_reserved(payload.name):
        raise invalid("name", _("A preset has this name. Choose another."))
    act = "target module config"
    own = TargetModuleConfig.objects.filter(project=request.auth.project, name=payload.name)
    config = own.current().first() if done_before(request, act) else None
    if config is None:
        with transaction.atomic():
            config = own.compose(
                project=request.auth.project,
                by=request.auth.user,
                name=payload.name,
                selection=selection,
                description=payload.description,
                evidence=payload.evidence,
            )
        first_time(request, act)
    return Status(201, shown(config, model, 16))


def chosen_base_model(request: Call, pk: int | None) -> BaseModel:
    """The base model of that id, or the built-in one where none is named."""
    try:
        return fetch(request, BaseModel.objects.ensure_bundled().pk if pk is None else pk)
    except Http404 as error:
        raise unknown("base_model", _("base model")) from error
