"""Checks what a model's config.json says before anything is built from it: sizes, numbers and names.

A config is somebody else's text: a million layers take minutes and gigabytes, and a name may mean anything in
the library that looks it up. Knows nothing of weights.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.contract.errors import ModelError

MAX_CONFIG_BYTES = 1_000_000
MAX_LAYERS = 1_000
# The end of a setting's name -> the largest value. The first match counts.
MAX_SIZES: tuple[tuple[str, int], ...] = (
    (r"(layers|n_layer|depth|blocks)", MAX_LAYERS),
    (r"(heads|n_head)", 10_000),
    (r"(experts|experts_per_tok)", 10_000),
    (r"vocab_size", 10_000_000),
    (r"(_size|_dim|_rank|d_model|d_ff|d_kv|n_embd|n_inner|ffn_hidden)", 10_000_000),
)
# Without these there is no model.
REQUIRED = re.compile(
    r"(hidden_size|d_model|n_embd|vocab_size|num_hidden_layers|n_layers?|num_layers"
    r"|num_attention_heads|num_key_value_heads|n_heads?|num_heads)"
)
NEVER_NEGATIVE = re.compile(r"(layers|n_layer|heads|n_head|experts|experts_per_tok|hidden_size|vocab_size)$")
DTYPES = ("auto", "float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# Transformers looks these names up in torch, or downloads what they name.
NAMES = {
    "dtype": DTYPES,
    "torch_dtype": DTYPES,
    "attn_implementation": ATTENTION,
    "_attn_implementation": ATTENTION,
}


def read_checked_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the settings of a JSON file; raise ModelError unless it is a small object without NaN."""
    if path.stat().st_size > limit:
        raise ModelError(f"{path.name} is larger than the limit of {limit / 1e6:g} MB. Check the folder.")
    try:
        values = json.loads(path.read_bytes(), parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not valid JSON. Copy the model again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path.name} contains no settings. Copy the model again.")
    for key in ("auto_map", "trust_remote_code"):
        if key in values:
            raise ModelError(
                f"{path.name} requests remote code (`{key}`), which Graftworks never runs. Choose a model "
                "whose type Transformers supports."
            )
    return values


def check_config(values: dict[str, Any]) -> None:
    """Raise ModelError for sizes outside their limits and for unknown names of formats and kernels."""
    for name, value in _settings(values):
        if name in NAMES:
            _check_name(name, value, NAMES[name])
        elif limit := _limit(name):
            _check_size(name, value, limit)


def largest_layer_count(values: dict[str, Any]) -> int:
    """Return the largest number of layers that any part of the model states."""
    counts = [
        value for name, value in _settings(values) if _limit(name) == MAX_LAYERS and isinstance(value, int)
    ]
    return max(counts, default=0)


def _settings(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of every setting, also those of the model's parts."""
    for name, value in values.items():
        if not isinstance(value, dict):
            yield name, value
        elif name in NAMES:
            yield from ((name, part) for part in value.values())
        else:
            yield from _settings(value)


def _limit(name: str) -> int:
    return next((limit for end, limit in MAX_SIZES if re.search(rf"{end}$", name)), 0)


def _check_size(name: str, value: Any, limit: int) -> None:
    # A list has one size for each layer, and None leaves a size to the library.
    is_required = REQUIRED.fullmatch(name)
    low = 1 if is_required else 0 if NEVER_NEGATIVE.search(name) else -limit
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and not isinstance(number, bool):
            is_right = low <= number <= limit and (isinstance(number, int) or not is_required)
        else:
            is_right = number is None or not is_required
        if not is_right:
            raise ModelError(
                f"config.json sets `{name[:60]}` to {str(number)[:40]}. It must be a whole number between "
                f"{max(0, low)} and {limit:,}. Copy the model again, or choose another one."
            )


def _check_name(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value is not None and (not isinstance(value, str) or value.removeprefix("torch.") not in known):
        raise ModelError(
            f"config.json sets `{name}` to {str(value)[:40]}. Known are {', '.join(known)}. Choose "
            "another model."
        )


def _number(constant: str) -> float:
    # Some models write an open interval as Infinity.
    if constant == "NaN":
        raise ValueError("NaN")
    return math.inf if constant == "Infinity" else -math.inf
