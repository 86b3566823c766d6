"""Attaches the adapter of every arm to the shared base model through PEFT, and checks what was attached.

LoRA (arXiv 2106.09685): h = W x + s B A x, with W [d_out, d_in] frozen, A [r, d_in], B [d_out, r] = 0 at the
start and s = lora_alpha / r; with rsLoRA (arXiv 2312.03732) s = lora_alpha / sqrt(r). PEFT owns parameters,
initial values, names and the file format. Knows nothing of data or of the loop.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from workers.contract.errors import TargetError
from workers.contract.specs import TrainSpec
from workers.engine.base_models.model import build, check_max_length, read_config
from workers.target_modules.resolution import names_sha256


def arm_name(index: int) -> str:
    """Return PEFT's adapter name of an arm: without a dot, and without `lora_`."""
    return f"arm{index}"


def attach(base: Any, specs: Sequence[TrainSpec]) -> Any:
    """Return one PEFT model with the adapters of all arms; initial values depend on the arm's own seed alone.

    Raises TargetError.
    """
    if len(specs) > 1 and any(spec.target.target_parameters for spec in specs):
        raise TargetError(
            "An adapter on experts trains alone, because PEFT keeps one set of experts per model. Start each "
            "of them as a separate run."
        )
    if len(specs) > 1 and any(spec.hyperparameters.use_dora for spec in specs):
        raise TargetError("An adapter with `use_dora` trains alone. Start it as a separate run.")
    model: Any = None
    for index, spec in enumerate(specs):
        config = _config(spec)
        # PEFT draws on the CPU; the state of every visible card would take memory on each of them.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.hyperparameters.seed)
            try:
                model = attach_adapter(
                    base if model is None else model,
                    config,
                    arm_name(index),
                    autocast_adapter_dtype=spec.hyperparameters.autocast_adapter_dtype,
                )
            except ValueError as error:
                raise TargetError(
                    f"The target modules fit nothing in {spec.base.name}: {_short(error)}"
                ) from error
        # PEFT would write the folder that it was loaded from.
        attached = model.peft_config[arm_name(index)]
        attached.base_model_name_or_path = spec.base.name
        attached.revision = spec.base.revision
        _check_attached(model, index, spec)
    return model.eval()


def check_specs(specs: Sequence[TrainSpec]) -> None:
    """Attach every arm to an empty copy of the base model, before weights are loaded.

    Raises TargetError, and RunError for a `max_length` that the model does not have.
    """
    empty = build(read_config(Path(specs[0].base.path)))
    with torch.device("meta"):
        attach(empty, specs)
    for spec in specs:
        check_max_length(empty, spec.base, spec.hyperparameters.max_length)


def attach_adapter(
    model: Any, config: Any, name: str = "default", *, autocast_adapter_dtype: bool = True
) -> Any:
    """Return the PEFT model with one more adapter, in fp32 or in the base model's number format."""
    from peft.mapping_func import get_peft_model
    from peft.peft_model import PeftModel

    with quiet():
        if isinstance(model, PeftModel):
            model.add_adapter(name, config, autocast_adapter_dtype=autocast_adapter_dtype)
            return model
        return get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=autocast_adapter_dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress PEFT's warning that the ranks of experts are ignored: they are not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        yield


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
        use_dora=learn.use_dora,
        bias="none",
        target_modules=target.target_regex or sorted(target.target_modules),
        target_parameters=sorted(target.target_parameters) or None,
        rank_pattern=dict(target.rank_pattern),
        alpha_pattern=dict(target.alpha_pattern),
        exclude_modules=sorted(target.exclude_modules) or None,
        layers_to_transform=list(target.layers_to_transform) or None,
    )


def _check_attached(model: Any, index: int, spec: TrainSpec) -> None:
    names = attached_names(model, arm_name(index))
    parameters = sum(parameter.numel() for parameter in arm_parameters(model, arm_name(index)).values())
    expected = spec.target
    if (len(names), parameters) != (expected.modules, expected.trainable_parameters):
        raise TargetError(
            f"PEFT adapted {len(names):,} modules of {spec.base.name} with {parameters:,} parameters, but "
            f"{expected.modules:,} modules with {expected.trainable_parameters:,} parameters were expected."
        )
    if expected.names_sha256 and expected.names_sha256 != names_sha256(names):
        raise TargetError(
            f"PEFT adapted other modules of {spec.base.name} than expected, for example {names[0]}."
        )


def attached_names(model: Any, name: str) -> list[str]:
    """Return the sorted names of the modules and expert tensors that carry the adapter."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    names = []
    for path, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and (name in layer.lora_A or name in layer.lora_embedding_A):
            # Adapters on several tensors of one module are wrapped around each other.
            module = path.replace(".base_layer", "")
            names.append(f"{module}.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else module)
    return sorted(names)


def arm_parameters(model: Any, name: str) -> dict[str, nn.Parameter]:
    """Return the adapter's own parameters by path, in the model's order."""
    return {
        path: parameter
        for path, parameter in model.named_parameters()
        if "lora_" in path and name in path.split(".")
    }


# The switches of each step get the modules, because finding them takes 20 ms with eight adapters.


def activate(model: Any, modules: Iterable[nn.Module], name: str) -> None:
    """Make this adapter the only active and trainable one, as PEFT's `set_adapter` does."""
    from peft.tuners.lora.layer import LoraLayer

    for layer in modules:
        if isinstance(layer, LoraLayer):
            layer.set_adapter(name)
    model.active_adapter = model.base_model.active_adapter = name


def set_dropout(modules: Iterable[nn.Module], on: bool) -> None:
    """Switch LoRA dropout; the frozen base model stays in evaluation mode."""
    from peft.tuners.lora.layer import LoraLayer

    for layer in modules:
        if isinstance(layer, LoraLayer):
            layer.lora_dropout.train(on)


def set_recompute(modules: Iterable[nn.Module], on: bool) -> None:
    """Switch gradient checkpointing for every layer: it keeps only its input, and is computed again backward.

    Transformers recomputes only layers in training mode, so the flag is set on the layers alone: their
    submodules stay in evaluation mode, and the base model's own dropout stays off.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    # Not reentrant: the lowest layers need no gradient for their inputs.
    recompute: Any = functools.partial(checkpoint, use_reentrant=False)
    for layer in modules:
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = on
            layer.training = on
            layer._gradient_checkpointing_func = recompute


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
