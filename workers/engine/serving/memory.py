"""Memory of an inference job: the tokens that fit beside what is in use, and room for one more adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from workers.contract.errors import OutOfMemory
from workers.contract.half_precision import read_header
from workers.contract.specs import ServeSpec
from workers.engine import runtime
from workers.engine.base_models.model import model_errors, read_config
from workers.forecasting.inference_cost import MIN_TOKENS, RESERVE_BYTES, ServedModel


def fit_tokens(spec: ServeSpec, model: ServedModel, device: torch.device, promised: int = 0) -> int:
    """Return the tokens that fit into the memory, at most the spec's. Raises OutOfMemory.

    `promised`: bytes that trainings on this machine are still to take.
    """
    room = _room(device) - (0 if model.on_cuda else promised)
    tokens = model.fitting_tokens(room, spec.max_tokens, spec.max_rows)
    if not tokens:
        least = model.memory_bytes(min(MIN_TOKENS, spec.max_tokens), spec.max_rows)
        raise OutOfMemory(
            f"{spec.base.name} needs {least / 1e9:,.2f} GB of memory to answer prompts, but only "
            f"{max(0, room) / 1e9:,.2f} GB are free on the worker's machine. Try again when a training has "
            "ended, or choose a smaller base model."
        )
    return tokens


def has_room(spec: ServeSpec, model: ServedModel, device: torch.device, adapter_weights: int) -> bool:
    """Return whether these adapters fit, with all tokens that the spec allows."""
    return model.memory_bytes(spec.max_tokens, spec.max_rows, adapter_weights) <= _room(device)


def _room(device: torch.device) -> int:
    """Return the bytes that this process has or may still take."""
    return runtime.resident_bytes(device) + runtime.available_bytes(device) - RESERVE_BYTES


def served_model(folder: Path, dtype: torch.dtype, device: torch.device) -> ServedModel:
    """Return the sizes of the base model in a folder. Raises ModelError."""
    config: Any = read_config(folder).get_text_config()
    # A recurrent model has no heads, and keeps nothing for each token.
    heads = getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    # Compressed attention keeps what its heads read.
    key, value = (getattr(config, name, None) or width for name in ("qk_head_dim", "v_head_dim"))
    return ServedModel(
        weights=count_weights(folder.glob("*.safetensors")),
        dtype_bytes=dtype.itemsize,
        layers=config.num_hidden_layers,
        cached_width=(getattr(config, "num_key_value_heads", None) or heads) * (key + value),
        hidden_size=config.hidden_size,
        mlp_width=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocab_size=config.vocab_size,
        max_positions=getattr(config, "max_position_embeddings", None) or 0,
        on_cuda=device.type == "cuda",
    )


def count_weights(files: Iterable[Path]) -> int:
    """Return the numbers in safetensors files, as their headers say. Raises ModelError."""
    count = 0
    for path in files:
        with model_errors(f"The weights in {path.name} cannot be read"), path.open("rb") as stream:
            header = read_header(stream)[0]
            header.pop("__metadata__", None)
            count += sum(math.prod(tensor["shape"]) for tensor in header.values())
    return count
