"""Models: inspected base models, and adapters that are not retired."""

from __future__ import annotations

import re
from typing import Any

from django.utils.translation import gettext as _
from ninja import Router

from dashboard.api.access import Call, Token
from dashboard.api.openai.lists import missing, seconds
from dashboard.api.refusals import invalid, refuse_others
from dashboard.models import Adapter, BaseModel, Role
from dashboard.models.accounts.project import parse_id

router = Router()
ADAPTER = "ft:"
CHECKPOINT = re.compile(r":ckpt-step-(\d{1,18})$", re.ASCII)


def checkpoint_name(adapter: Adapter) -> str:
    """Return the name of an adapter with the step whose weights it has."""
    return f"{adapter.openai_name}:ckpt-step-{published_step(adapter)}"


def published_step(adapter: Adapter) -> int:
    """Return the step of the weights that were published."""
    return int(adapter.run.measured.get("published_step") or adapter.run.step)


def base_models(request: Call) -> dict[str, BaseModel]:
    """Return the inspected base models by name; of several revisions the newest."""
    ready = BaseModel.objects.ready().select_related("project").visible_to(request.auth).order_by("pk")
    return {base_model.hub_id: base_model for base_model in ready}


def find(request: Call, name: str, field: str = "model") -> BaseModel | Adapter:
    """Return the base model or the adapter of this name, or refuse it with 404."""
    model = find_adapter(request, name) if name.startswith(ADAPTER) else base_models(request).get(name)
    if model is None or (isinstance(model, Adapter) and model.stage == Adapter.Stage.RETIRED):
        raise missing(field, _("model"))
    return model


def find_adapter(request: Call, name: str) -> Adapter | None:
    """Return the adapter of this name in any stage."""
    plain = CHECKPOINT.sub("", name)
    pk = parse_id(plain.rpartition(":")[2])
    adapters = Adapter.objects.with_facts().visible_to(request.auth)
    adapter = adapters.filter(pk=pk).first() if pk is not None else None
    return adapter if adapter and name in (adapter.openai_name, checkpoint_name(adapter)) else None


def serialize_model(model: BaseModel | Adapter) -> dict[str, Any]:
    """Return the model object."""
    return {
        "id": model.openai_name if isinstance(model, Adapter) else model.hub_id,
        "object": "model",
        "created": seconds(model.created_at),
        "owned_by": model.project.slug if model.project else "graftworks",
    }


@router.get("")
def index(request: Call) -> dict[str, Any]:
    """List the base models and the adapters, without pages."""
    refuse_others(list(request.GET), [])
    adapters = Adapter.objects.with_facts().visible_to(request.auth).exclude(stage=Adapter.Stage.RETIRED)
    return {
        "object": "list",
        "data": [serialize_model(one) for one in (*base_models(request).values(), *adapters)],
    }


@router.get("/{path:model}")
def detail(request: Call, model: str) -> dict[str, Any]:
    """Return one model."""
    return serialize_model(find(request, model))


@router.delete("/{path:model}", auth=Token(Role.MANAGER), url_name="model-detail")
def delete(request: Call, model: str) -> dict[str, Any]:
    """Retire an adapter: it is kept, but no longer listed here or served."""
    adapter = find_adapter(request, model)
    if adapter is None:
        find(request, model)
        raise invalid("model", _("Only fine-tuned models can be deleted."))
    adapter.set_stage(Adapter.Stage.RETIRED)
    return {"id": model, "object": "model", "deleted": True}
