"""Every preset on every family, attached by PEFT itself: exactly the expected names, counted to the byte.

`python -m pytest -q tests/engine/base_models/test_families.py --durations=0` lists the time of each family.
"""

from __future__ import annotations

import re

import peft
import pytest
import safetensors.torch
import torch
from peft import LoraConfig

from tests.engine.families import FAMILIES, USUAL_NAMES
from workers.engine.base_models import census
from workers.engine.training.lora import attach_adapter
from workers.forecasting.adapter_size import adapter_bytes, adapter_params
from workers.target_modules.census import PRESET_SCOPES, Census
from workers.target_modules.custom import resolve_names
from workers.target_modules.peft_rules import Arguments, NotConvertible, matched_names
from workers.target_modules.presets import PRESETS, resolve

# Their layers have the sizes and names of Llama's.
SAME_NAMES = set(USUAL_NAMES.split()) - {"llama"}
RANK = 16
ALPHA = 32
ADAPTED = {
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_kv",
    "attn_out",
    "mlp_gate",
    "mlp_up",
    "mlp_gate_up",
    "mlp_down",
    "expert_gate_up",
    "expert_down",
}


def names_of(family: str) -> list[str]:
    """Return the names of the model's modules and tensors."""
    model = FAMILIES[family].build(family)
    return [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]


def expected_names(family: str, names: list[str], slug: str) -> list[str]:
    """Return the model's names that end as the family's table says."""
    table = FAMILIES[family]
    ends = [end if "\\" in end else re.escape(end) for end in table.expected(slug)]
    return sorted(
        name
        for name in set(names)
        if not (table.excluded and table.excluded in name)
        and any(re.search(rf"[a-z.]{end}$", name) for end in ends)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_presets_attach_exactly_the_expected_names(family: str) -> None:
    counted, names = census.listed(FAMILIES[family].build(family)), names_of(family)
    for slug, preset in PRESETS.items():
        resolution = resolve(preset.roles, counted)
        assert not resolution.refusal, (slug, resolution.refusal)
        arguments = resolution.arguments(RANK, ALPHA)
        with torch.device("meta"):
            config = LoraConfig(r=RANK, lora_alpha=ALPHA, bias="none", **arguments.to_dict())
            model = attach_adapter(FAMILIES[family].build(family), config)
        found = sorted([*model.targeted_module_names, *model.targeted_parameter_names])
        assert found == expected_names(family, names, slug), slug
        assert found == sorted(matched_names(arguments, counted, RANK)), slug

        trainable = sum(item.numel() for item in model.parameters() if item.requires_grad)
        assert adapter_params(resolution.matched, RANK) == trainable, slug
        saved = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        whole = {name: torch.zeros(item.shape) for name, item in saved.items()}
        size = len(safetensors.torch.save(whole, metadata={"format": "pt"}))
        assert adapter_bytes(resolution.matched, RANK) == size, slug


def peft_attaches(family: str, arguments: Arguments) -> tuple[list[str], int]:
    """Return (names, parameters) that PEFT adapts; nothing if it refuses the names."""
    with torch.device("meta"):
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, bias="none", **arguments.to_dict())
        try:
            model = attach_adapter(FAMILIES[family].build(family), config)
        except ValueError:
            return [], 0
    names = sorted([*model.targeted_module_names, *model.targeted_parameter_names])
    return names, sum(item.numel() for item in model.parameters() if item.requires_grad)


def predicted(arguments: Arguments, counted: Census) -> tuple[list[str], int]:
    """Return the same by the rules in plain Python."""
    try:
        ranks = matched_names(arguments, counted, RANK)
    except NotConvertible:
        return [], 0
    groups = {name: group for group in counted.groups for name in group.names()}
    sizes = 0
    for name, rank in ranks.items():
        group = groups.get(name) or groups[name.removesuffix(".weight")]
        sizes += rank * group.experts * (group.d_in + group.d_out)
    return sorted(ranks), sizes


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.proof if name in SAME_NAMES else ()) for name in FAMILIES],
)
def test_python_rules_equal_peft(family: str) -> None:
    counted = census.listed(FAMILIES[family].build(family))
    reached = [group for group in counted.groups if group.scope in PRESET_SCOPES and group.role in ADAPTED]
    leaves = sorted({group.pattern.split(".")[-1] for group in reached})
    # Whole last names, half of one beside a valid one, and names with their parents.
    halves, parents = [leaves[0], leaves[-1][1:]], [".".join(g.pattern.split(".")[-2:]) for g in reached]
    for entries, layers in ((leaves, ()), (halves, (0,)), (parents, (0, 1))):
        raw = Arguments(target_modules=tuple(entries), layers_to_transform=layers)
        assert predicted(raw, counted) == peft_attaches(family, raw), (entries, layers)
    half = resolve_names(leaves, counted, layers=range(counted.num_layers // 2, counted.num_layers))
    assert not half.refusal
    found = peft_attaches(family, half.arguments(RANK, ALPHA))
    assert found == (sorted(half.names()), half.params(RANK))


def test_at_least_thirty_families() -> None:
    assert len(FAMILIES) >= 30
