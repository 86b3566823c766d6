"""Models of the OpenAI-compatible API: base models and adapters, whose names contain slashes."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI

from dashboard.models import Adapter, BaseModel, Project, User
from tests.conftest import make_base_model
from tests.openai_client import Connect, client_of


def test_list_has_bases_and_adapters(client: OpenAI, adapter: Adapter) -> None:
    tuned = f"ft:example/tiny:support:triage:{adapter.pk}"
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"example/tiny", tuned}
    assert models[tuned].to_dict() == {
        "id": tuned,
        "object": "model",
        "created": int(adapter.created_at.timestamp()),
        "owned_by": "support",
    }
    for name in models:
        assert client.models.retrieve(name).id == name


def test_base_model_without_a_census_is_no_model(client: OpenAI) -> None:
    BaseModel.objects.ensure_bundled()
    assert list(client.models.list()) == []


@pytest.mark.parametrize(
    "name",
    [
        "example/other",
        "ft:example/tiny:support:triage:999999",
        "ft:example/tiny:elsewhere:triage:{pk}",
        "ft:example/tiny:support:triage:{pk}:ckpt-step-3",
        "ft:{pk}",
        "a\x00b",
    ],
)
def test_unknown_name_is_not_found(client: OpenAI, adapter: Adapter, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve(name.format(pk=adapter.pk))
    assert refused.value.param == "model"


def test_managers_retire_an_adapter(
    connect: Connect, client: OpenAI, adapter: Adapter, project: Project, mara: User
) -> None:
    name = f"ft:example/tiny:support:triage:{adapter.pk}"
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete(name)
    manager = client_of(connect, project, mara)
    assert [manager.models.delete(name).deleted for _try in range(2)] == [True, True]
    adapter.refresh_from_db()
    assert adapter.stage == "retired"
    assert [model.id for model in client.models.list()] == ["example/tiny"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)


def test_base_model_is_not_deleted(
    connect: Connect, base_model: BaseModel, project: Project, mara: User
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client_of(connect, project, mara).models.delete(base_model.hub_id)
    assert refused.value.param == "model"


def test_others_see_no_model(connect: Connect, adapter: Adapter, otto: User, other_project: Project) -> None:
    stranger = client_of(connect, other_project, otto)
    make_base_model(other_project, hub_id="theirs/model")
    assert [model.id for model in stranger.models.list()] == ["theirs/model"]
    for act in (stranger.models.retrieve, stranger.models.delete):
        with pytest.raises(openai.NotFoundError):
            act(f"ft:example/tiny:support:triage:{adapter.pk}")
