"""Target-module configs: versions, visibility, and their resolution on a base model."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from dashboard.models import BaseModel, Project, TargetModuleConfig, User
from workers.contract.errors import SpecError
from workers.target_modules.custom import Selection


def compose(project: Project, by: User, *names: str, **other: object) -> TargetModuleConfig:
    selection = Selection(target_modules=names, **other)  # type: ignore[arg-type]
    return TargetModuleConfig.objects.compose(project=project, by=by, name="Ours", selection=selection)


def test_names_layers_and_ranks_are_resolved(project: Project, ed: User, base_model: BaseModel) -> None:
    config = compose(project, ed, "o_proj", "down_proj", layers="top_half", rank_pattern={"down_proj": 4})
    resolution = TargetModuleConfig.objects.get(pk=config.pk).resolve(base_model)
    assert resolution.layers_to_transform == (1,)
    assert resolution.arguments(16, 32).rank_pattern == {"mlp.down_proj": 4}
    assert resolution.arguments(16, 32).alpha_pattern == {"mlp.down_proj": 8}
    assert resolution.params(16) == 16 * (32 + 32) + 4 * (64 + 32)


def test_an_existing_name_adds_a_version(project: Project, ed: User) -> None:
    first, second = compose(project, ed, "o_proj"), compose(project, ed, "q_proj")
    assert (first.version, second.version) == (1, 2)
    own = TargetModuleConfig.objects.filter(project=project)
    assert list(own.current()) == [second]
    assert TargetModuleConfig.objects.filter(project=None).current().count() == 6


def test_a_version_number_is_unique(project: Project, ed: User) -> None:
    compose(project, ed, "o_proj")
    with pytest.raises(IntegrityError), transaction.atomic():
        TargetModuleConfig.objects.create(project=project, name="Ours")


def test_configs_are_visible_to_their_project_only(project: Project, ed: User, otto: User) -> None:
    config = compose(project, ed, "o_proj")
    visible = TargetModuleConfig.objects
    assert visible.visible_to(ed).filter(pk=config.pk).exists()
    assert not visible.visible_to(otto).filter(pk=config.pk).exists()


def test_a_selection_survives_json() -> None:
    selection = Selection(("o_proj",), layers_to_transform=(0, 2), rank_pattern={"o_proj": 4})
    assert Selection.from_dict(selection.to_dict()) == selection


def test_an_adapter_config_of_peft_is_read() -> None:
    written = {
        "peft_type": "LORA",
        "r": 8,
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [1, 0],
        "rank_pattern": {},
        "target_parameters": None,
    }
    assert Selection.from_dict(written) == Selection(("q_proj", "v_proj"), layers_to_transform=(0, 1))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"target_modules": ".*o_proj"}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": ["o_proj"], "layers_to_transform": ["1"]}, "layers_to_transform"),
        ({"target_modules": ["o_proj"], "rank_pattern": {"o_proj": 0}}, "rank_pattern"),
        ({"target_modules": ["o_proj"], "alpha_pattern": {"o_proj": "x"}}, "alpha_pattern"),
        ({"target_modules": ["o_proj"], "layers": "bottom"}, "layers"),
        ({"target_modules": ["o_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_unsupported_values_are_refused(values: dict[str, object], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Selection.from_dict(values)
    assert caught.value.field == field
