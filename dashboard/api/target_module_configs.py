"""Choices of target modules: the built-in presets, and what each costs on a base model."""

from typing import Any

from django.http import Http404
from django.utils.translation import gettext as _
from ninja import Router, Schema
from ninja.pagination import paginate

from dashboard.api.access import Call
from dashboard.api.base_models import Rank, fetch, inspected
from dashboard.api.paging import Newest, Rows
from dashboard.api.refusals import READING, unknown
from dashboard.forms.plan import preset_cards
from dashboard.models import BaseModel, TargetModuleConfig

# No postponed annotations here: below `paginate` the framework could not resolve `Rank` by its name.
router = Router()


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
    to read before a run, and the reason where the choice does not fit this model.
    """

    id: int
    slug: str | None
    name: str
    trainable_parameters: int | None
    adapter_bytes: int | None
    resolved: dict[str, Any] | None
    matched: list[MatchedOut]
    warnings: list[str]


def shown(config: TargetModuleConfig, base_model: BaseModel, r: int) -> TargetModuleConfigOut:
    """The object with its forecast on this model."""
    card = preset_cards([config], base_model, r)[0]
    found = card.resolution
    works = not found.refusal
    return TargetModuleConfigOut(
        id=config.pk,
        slug=config.slug,
        name=config.name,
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
    )


@router.get("", response={200: list[TargetModuleConfigOut], **READING})
@paginate(Newest)
def index(request: Call, base_model: int | None = None, r: Rank = 16) -> Rows:
    """All choices with their forecast on `base_model` (the built-in one where left out) at rank `r`."""
    model = inspected(chosen_base_model(request, base_model))
    configs = TargetModuleConfig.objects.current().visible_to(request.auth)
    return Rows(configs, lambda config: shown(config, model, r))


def chosen_base_model(request: Call, pk: int | None) -> BaseModel:
    """The base model of that id, or the built-in one where none is named."""
    try:
        return fetch(request, BaseModel.objects.ensure_bundled().pk if pk is None else pk)
    except Http404 as error:
        raise unknown("base_model", _("base model")) from error
