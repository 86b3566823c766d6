"""Every preset on every family, attached by PEFT itself: exactly the names meant, counted to the byte.

`python -m pytest -q tests/engine/test_families.py --durations=0` lists the time of each family.
"""

from __future__ import annotations

import re

import peft
import pytest
import safetensors.torch
import torch
from peft import LoraConfig

from tests.engine.families import FAMILIES
from workers.engine import census
from workers.engine.lora import attach_one
from workers.forecast import adapter_bytes, adapter_params
from workers.matching import attached
from workers.presets import PRESETS, resolve

RANK = 16
ALPHA = 32


def meant_names(family: str, slug: str) -> list[str]:
    """The model's own names that end as the family's table says, in the part that may be touched."""
    one = FAMILIES[family]
    model = one.build(family)
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    ends = [end if "\\" in end else re.escape(end) for end in one.meant(slug)]
    return sorted(
        name
        for name in set(names)
        if not (one.apart and one.apart in name) and any(re.search(rf"[a-z.]{end}$", name) for end in ends)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_preset_attaches_exactly_what_is_meant_on(family: str) -> None:
    counted = census.listed(FAMILIES[family].build(family))
    for slug, preset in PRESETS.items():
        resolution = resolve(preset.roles, counted)
        assert not resolution.refusal, (slug, resolution.refusal)
        arguments = resolution.arguments(RANK, ALPHA)
        with torch.device("meta"):
            config = LoraConfig(r=RANK, lora_alpha=ALPHA, bias="none", **arguments.to_dict())
            model = attach_one(FAMILIES[family].build(family), config)
        found = sorted([*model.targeted_module_names, *model.targeted_parameter_names])
        assert found == meant_names(family, slug), slug
        assert found == sorted(attached(arguments, counted, RANK)), slug

        trainable = sum(item.numel() for item in model.parameters() if item.requires_grad)
        assert adapter_params(resolution.matched, RANK) == trainable, slug
        saved = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        whole = {name: torch.zeros(item.shape) for name, item in saved.items()}
        size = len(safetensors.torch.save(whole, metadata={"format": "pt"}))
        assert adapter_bytes(resolution.matched, RANK) == size, slug


def test_the_table_has_thirty_families_and_more() -> None:
    assert len(FAMILIES) >= 30
