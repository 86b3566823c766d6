"""Target-module configs: the built-in presets and the project's own, with their size on a base model."""

from typing import Annotated, Any

from django.db import transaction
from django.http import Http404
from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from pydantic import AfterValidator, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from dashboard.api.access import Call, done_before, first_time
from dashboard.api.catalog.base_models import Rank, fetch, require_inspected
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, invalid, unknown
from dashboard.api.texts import Name, storable
from dashboard.forms.training.plan import preset_cards
from dashboard.models import BaseModel, TargetModuleConfig
from dashboard.models.catalog.target_module_config import TEXT_LENGTH
from workers.contract.errors import SpecError
from workers.target_modules.custom import MAX_ENTRIES, Selection

# No postponed annotations here: below `listing` the framework could not resolve `Rank` by its name.
router = Router()
Text = Annotated[StrictStr, Field(max_length=TEXT_LENGTH), AfterValidator(storable)]


class MatchedOut(Schema):
    """Adapted layers of one group; `group` is their name with `*` for the layer number."""

    group: str
    role: str
    layers: list[int]
    d_in: int
    d_out: int


class TargetModuleConfigOut(Schema):
    """A target-module config. The two numbers are null if it does not fit the base model.

    `resolved` holds PEFT's arguments at the requested rank with lora_alpha = 2r. `warnings` are sentences to
    read before a run, or the reason why the config does not fit. `confirm` holds the warnings that a run has
    to accept with `confirmed`.
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
    """A project's own target modules: module names or suffixes in PEFT's spelling, checked on one base model.

    An existing name creates its next version; runs keep theirs. `layers_to_transform` counts from 0; all
    layers by default. `rank_pattern` and `alpha_pattern` set the rank and alpha of single names.
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


def describe(config: TargetModuleConfig, base_model: BaseModel, r: int) -> TargetModuleConfigOut:
    """Return the config with its size on this model."""
    card = preset_cards([config], base_model, r)[0]
    resolution = card.resolution
    is_usable = not resolution.refusal
    return TargetModuleConfigOut(
        id=config.pk,
        slug=config.slug,
        name=config.name,
        version=config.version,
        trainable_parameters=card.trainable_parameters if is_usable else None,
        adapter_bytes=card.adapter_bytes if is_usable else None,
        resolved=resolution.arguments(r, 2 * r).to_dict() if is_usable else None,
        matched=[
            MatchedOut(
                group=item.pattern,
                role=item.role,
                layers=list(item.layers),
                d_in=item.group.d_in,
                d_out=item.group.d_out,
            )
            for item in (resolution.matched if is_usable else ())
        ],
        warnings=[*resolution.notes, *resolution.expert_shares(r), *resolution.confirmations]
        if is_usable
        else [resolution.refusal],
        confirm=list(resolution.confirmations) if is_usable else [],
    )


@router.get("", response={200: list[TargetModuleConfigOut], **READING})
@listing(Newest)
def index(request: Call, base_model: int | None = None, r: Rank = 16) -> Rows:
    """List all configs with their size on `base_model` (by default the built-in one) at rank `r`."""
    model = require_inspected(chosen_base_model(request, base_model))
    configs = TargetModuleConfig.objects.current().visible_to(request.auth)
    return Rows(configs, lambda config: describe(config, model, r))


@router.post("", response={201: TargetModuleConfigOut, **WRITING})
def create(request: Call, payload: TargetModuleConfigIn) -> Status[TargetModuleConfigOut]:
    """Create a config of the project, or its next version. It has to match layers of the given base model."""
    model = require_inspected(chosen_base_model(request, payload.base_model))
    names = ("target_modules", "layers_to_transform", "rank_pattern", "alpha_pattern")
    try:
        selection = Selection.from_dict({name: getattr(payload, name) for name in names})
    except SpecError as error:
        raise invalid(error.field, error.message) from error
    if refusal := selection.resolve(model.load_census()).refusal:
        raise invalid("target_modules", refusal)
    if TargetModuleConfig.is_reserved(payload.name):
        raise invalid("name", _("A preset has this name. Choose another."))
    operation = "target module config"
    own = TargetModuleConfig.objects.filter(project=request.auth.project, name=payload.name)
    config = own.current().first() if done_before(request, operation) else None
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
        first_time(request, operation)
    return Status(201, describe(config, model, 16))


def chosen_base_model(request: Call, pk: int | None) -> BaseModel:
    """Return the base model of that id, or the built-in one without an id."""
    try:
        return fetch(request, BaseModel.objects.ensure_bundled().pk if pk is None else pk)
    except Http404 as error:
        raise unknown("base_model", _("base model")) from error
