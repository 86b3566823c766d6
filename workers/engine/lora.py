"""From specs to PEFT: attaches every arm to the shared base and checks what was really attached.

PEFT owns parameters, initial values, names and the file format. Knows nothing of data or of the loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from workers.errors import TargetError
from workers.specs import TrainSpec


def arm_name(index: int) -> str:
    """PEFT's adapter name of an arm: no dot, and no part of the string `lora_`."""
    return f"arm{index}"


def attach(base: Any, specs: Sequence[TrainSpec]) -> Any:
    """One PEFT model that carries every arm; each arm's first values depend on its own seed alone."""
    if len(specs) > 1 and any(spec.target.target_parameters for spec in specs):
        raise TargetError(
            "An adapter on experts trains alone, because PEFT keeps one set of experts per model. Start each "
            "as a run of its own."
        )
    model: Any = None
    for index, spec in enumerate(specs):
        config = _config(spec)
        with torch.random.fork_rng():
            torch.manual_seed(spec.hyperparameters.seed)
            try:
                model = attach_one(base if model is None else model, config, arm_name(index))
            except ValueError as error:
                raise TargetError(
                    f"The target modules fit nothing in {spec.base.name}: {_short(error)}"
                ) from error
        # PEFT writes the folder it loaded from; people need the public name.
        attached = model.peft_config[arm_name(index)]
        attached.base_model_name_or_path = spec.base.name
        attached.revision = spec.base.revision
        _check_count(model, index, spec)
    return model.eval()


def attach_one(model: Any, config: Any, name: str = "default") -> Any:
    """The PEFT model with one adapter more. PEFT warns that ranks of experts are ignored; they are not."""
    from peft.mapping_func import get_peft_model
    from peft.peft_model import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            return model
        return get_peft_model(model, config, adapter_name=name)


def _config(spec: TrainSpec) -> Any:
    from peft.tuners.lora.config import LoraConfig

    target, learn = spec.target, spec.hyperparameters
    assert learn.lora_alpha is not None, "a checked spec has its lora_alpha resolved"
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=learn.r,
        lora_alpha=learn.lora_alpha,
        lora_dropout=learn.lora_dropout,
        use_rslora=learn.use_rslora,
        bias="none",
        target_modules=target.target_regex or sorted(target.target_modules),
        target_parameters=sorted(target.target_parameters) or None,
        rank_pattern=dict(target.rank_pattern),
        alpha_pattern=dict(target.alpha_pattern),
        exclude_modules=sorted(target.exclude_modules) or None,
        layers_to_transform=list(target.layers_to_transform) or None,
    )


def _check_count(model: Any, index: int, spec: TrainSpec) -> None:
    modules, parameters = count_attached(model, arm_name(index))
    promised = spec.target
    if (modules, parameters) != (promised.modules, promised.trainable_parameters):
        raise TargetError(
            f"{spec.base.name} took {modules:,} adapted modules with {parameters:,} parameters, but "
            f"{promised.modules:,} modules with {promised.trainable_parameters:,} parameters were promised."
        )


def count_attached(model: Any, name: str) -> tuple[int, int]:
    """(modules, parameters) that really carry the adapter."""
    from peft.tuners.lora.layer import LoraLayer

    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    modules = sum(name in layer.lora_A or name in layer.lora_embedding_A for layer in layers)
    return modules, sum(parameter.numel() for parameter in arm_parameters(model, name))


def arm_parameters(model: Any, name: str) -> list[nn.Parameter]:
    """The adapter's own parameters, fp32, in the model's order."""
    return [
        parameter
        for path, parameter in model.named_parameters()
        if "lora_" in path and name in path.split(".")
    ]


def activate(model: Any, name: str) -> None:
    """Let this arm alone act and learn."""
    model.set_adapter(name)


def set_dropout(model: Any, on: bool) -> None:
    """Switch LoRA dropout; the frozen base stays in evaluation mode."""
    from peft.tuners.lora.layer import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout.train(on)


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
