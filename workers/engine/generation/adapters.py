"""LoRA adapters on one base model, and the forward in which every token has its own adapter.

PEFT loads them and owns their weights; for a mixed step the weights of the adapters in use are laid behind
one another, so that each layer does two products for all of them. Knows nothing of requests.
"""

from __future__ import annotations

import itertools
import json
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.peft_model import PeftModelForCausalLM
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor

from workers.contract.errors import ModelError, TargetError
from workers.engine.training import lora

FILES = ("adapter_config.json", "adapter_model.safetensors")
MISMATCHES = (ValueError, RuntimeError, KeyError)
MISMATCH = "The adapter does not fit the base model."
Columns = tuple[tuple[str, int], ...]  # adapter and rank, in the order of the weights


def check_adapter(folder: Path) -> None:
    """Raise ModelError unless the folder holds an adapter in safetensors format."""
    # PEFT silently loads a pickle if the safetensors file is missing.
    for name in FILES:
        if not (folder / name).is_file():
            raise ModelError(
                f"The adapter's folder has no {name}, so it cannot be loaded.", code="bad_adapter"
            )


def check_bias(folder: Path) -> None:
    """Raise ModelError for an adapter with biases of its own: PEFT would write them into the base model."""
    bias = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("bias", "none")
    if bias != "none":
        raise ModelError(
            f"This adapter was trained with bias={bias!r}. It cannot share a base model with others, because "
            "its biases would replace those of the base model. Train it with bias='none', or merge it.",
            code="bad_adapter",
        )


def attach(base: Any, folder: Path, name: str) -> Any:
    """Return the base model as a PEFT model with this adapter alone, not merged. Raises TargetError."""
    loader: Any = PeftModelForCausalLM
    try:
        with lora.quiet():
            model = loader.from_pretrained(base, str(folder), name, **_loading(base))
    except MISMATCHES as error:
        raise TargetError(MISMATCH) from error
    return model.eval()


def _loading(base: Any) -> dict[str, Any]:
    """Return PEFT's arguments; by itself it would read weights to a GPU even for a base model on the CPU."""
    return {"is_trainable": False, "local_files_only": True, "torch_device": str(base.device)}


@dataclass
class Mix:
    """The adapters of a step's tokens: of each single token, then of spans of longer pieces."""

    singles: Sequence[str | None]
    spans: Sequence[tuple[str | None, int]]  # adapter and tokens
    masks: dict[Columns, Tensor | None] = field(default_factory=dict)

    def mask(self, columns: Columns, like: Tensor) -> Tensor | None:
        """Return 1 where a single token has the column's adapter, [singles, columns]; None if everywhere."""
        if columns not in self.masks:
            owners = [name for name, rank in columns for _ in range(rank)]
            mask = torch.tensor([[own == name for own in owners] for name in self.singles])
            self.masks[columns] = None if bool(mask.all()) else mask.to(like)
        return self.masks[columns]


@dataclass
class _Weights:
    """Weights of several adapters in one layer: A [ranks, d_in], and scaled B transposed, [ranks, d_out]."""

    a: Tensor
    b: Tensor
    columns: Columns
    spans: dict[str, slice]


class Adapters:
    """The adapters loaded on one base model, least recently used first."""

    def __init__(self, base: Any) -> None:
        self.base = base
        self._peft: Any = None
        self._names: dict[str, str] = {}  # of PEFT's, which allows no dots
        self._numbers = itertools.count()
        self._mixable: dict[str, bool] = {}
        self._active: str | bool | None = True  # True: not known
        self._mix: Mix | None = None
        self._laid_out: tuple[str, ...] = ()
        self._weights: dict[int, _Weights | None] = {}

    def __iter__(self) -> Any:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def use(self, name: str) -> None:
        """Note that the adapter was used just now."""
        self._names[name] = self._names.pop(name)

    def is_mixable(self, name: str | None) -> bool:
        """Return whether tokens of this adapter may share a step with others: plain LoRA on linear layers."""
        return name is None or self._mixable[name]

    def changes_outputs(self, name: str) -> bool:
        """Return whether any of its products differs from 0."""
        own_name = self._names[name]
        weights = [
            part[own_name]
            for layer in self._layers()
            for part in (layer.lora_B, layer.lora_embedding_B)
            if own_name in part
        ]
        return bool(self._peft.peft_config[own_name].modules_to_save) or any(
            bool(getattr(part, "weight", part).any()) for part in weights
        )

    def load(self, name: str, folder: Path) -> None:
        """Load one more adapter. Raises ModelError, and TargetError if it does not fit the base model."""
        check_adapter(folder)
        check_bias(folder)
        assert name not in self._names, f"the adapter {name} is loaded"
        own_name = f"adapter{next(self._numbers)}"
        self._attach(own_name, folder)
        self._names[name] = own_name
        self._active, self._weights = True, {}
        config = self._peft.peft_config[own_name]
        layers = [
            layer
            for layer in self._layers()
            if own_name in layer.lora_A or own_name in layer.lora_embedding_A
        ]
        self._mixable[name] = not config.modules_to_save and all(
            _is_plain(layer, own_name) for layer in layers
        )
        for layer in layers:
            if "forward" not in vars(layer) and _is_linear(layer):
                layer.forward = types.MethodType(self._layer_forward(layer), layer)

    def unload(self, name: str) -> None:
        """Free the adapter's weights."""
        own_name = self._names.pop(name)
        del self._mixable[name]
        self._active, self._weights, self._laid_out = True, {}, ()
        self._detach(own_name)

    def _attach(self, own_name: str, folder: Path) -> None:
        if self._peft is None:
            try:
                self._peft = attach(self.base, folder, own_name)
            except TargetError:
                self._detach(own_name)
                raise
            return
        try:
            with lora.quiet():
                self._peft.load_adapter(str(folder), own_name, **_loading(self.base))
        except MISMATCHES as error:
            self._detach(own_name)
            raise TargetError(MISMATCH) from error
        self._peft.eval()

    def _detach(self, own_name: str) -> None:
        """Remove one adapter, perhaps incomplete, and with the last one all that PEFT put into the model."""
        if self._names:
            with warnings.catch_warnings():
                # PEFT tells which other adapter is active now.
                warnings.simplefilter("ignore", UserWarning)
                self._peft.delete_adapter(own_name)
            return
        wrapped: list[str] = []
        for path, layer in list(self.base.named_modules()):
            is_inside = any(path.startswith(f"{outer}.") for outer in wrapped)
            if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) and not is_inside:
                wrapped.append(path)
                parent, _, name = path.rpartition(".")
                setattr(self.base.get_submodule(parent), name, _original(layer))
        vars(self.base).pop("peft_config", None)
        self._peft = None

    def _layers(self) -> list[Any]:
        return [layer for layer in self.base.modules() if isinstance(layer, LoraLayer)]

    def activate(self, name: str | None) -> None:
        """Let PEFT compute every token with this adapter, or with none."""
        self._mix = None
        self._switch(name)

    def _switch(self, name: str | None) -> None:
        if self._peft is None or name == self._active:
            return
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(self._names[name], inference_mode=True)
        self._active = name

    def mix(self, mix: Mix) -> None:
        """Let every token be computed with its own adapter, until `activate` is called."""
        self._switch(None)
        self._mix = mix
        wanted = {name for name in (*mix.singles, *(name for name, _ in mix.spans)) if name is not None}
        if not wanted <= set(self._laid_out):
            self._laid_out, self._weights = tuple(sorted(wanted)), {}

    def _layer_forward(self, layer: Any) -> Any:
        key = id(layer)

        def forward(self_layer: Any, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
            mix = self._mix
            if mix is None:
                output: Tensor = type(self_layer).forward(self_layer, x, *arguments, **options)
                return output
            y: Tensor = self_layer.base_layer(x)
            if key not in self._weights:
                self._weights[key] = self._lay_out(self_layer)
            weights = self._weights[key]
            if weights is not None:
                _add_mixed(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), weights, mix)
            return y

        return forward

    def _lay_out(self, layer: Any) -> _Weights | None:
        own = [(name, self._names[name]) for name in self._laid_out if self._names[name] in layer.lora_A]
        if not own:
            return None
        a = [layer.lora_A[name].weight for _, name in own]
        b = [layer.lora_B[name].weight.T * layer.scaling[name] for _, name in own]
        columns = tuple((name, len(part)) for (name, _), part in zip(own, a, strict=True))
        ends = list(itertools.accumulate(rank for _, rank in columns))
        spans = {name: slice(end - rank, end) for (name, rank), end in zip(columns, ends, strict=True)}
        return _Weights(torch.cat(a), torch.cat(b), columns, spans)


def _original(layer: Any) -> Any:
    """Return the base model's own module within PEFT's layers."""
    while isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
        layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer.original_module
    return layer


def _is_linear(layer: Any) -> bool:
    # Linear4bit exists only where bitsandbytes is installed.
    return type(layer).__name__ in ("Linear", "Linear4bit")


def _is_plain(layer: Any, own_name: str) -> bool:
    return (
        _is_linear(layer)
        and own_name in layer.lora_A
        and own_name not in layer.lora_variant
        and not layer.lora_bias[own_name]
    )


def _add_mixed(y: Tensor, x: Tensor, weights: _Weights, mix: Mix) -> None:
    """Add to y [T, d_out] each token's own low-rank product of x [T, d_in]."""
    x = x.to(weights.a.dtype)
    singles = len(mix.singles)
    if singles:
        middle = x[:singles] @ weights.a.T
        mask = mix.mask(weights.columns, middle)
        _add_product(y[:singles], middle if mask is None else middle.mul_(mask), weights.b)
    start = singles
    for name, tokens in mix.spans:
        rows = slice(start, start + tokens)
        start += tokens
        if name in weights.spans:
            span = weights.spans[name]
            _add_product(y[rows], x[rows] @ weights.a[span].T, weights.b[span])
    assert start == len(y), "an adapted layer reads all tokens of a step"


def _add_product(y: Tensor, left: Tensor, right: Tensor) -> None:
    if y.dtype == left.dtype:
        y.addmm_(left, right)
    else:
        y.add_(left @ right)
