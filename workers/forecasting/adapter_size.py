"""Parameters and file size of an adapter, computed from a census before the run. Standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import lru_cache

from workers.target_modules.census import Matched

_DTYPES = {4: "F32", 2: "BF16"}


def adapter_params(matched: Iterable[Matched], r: int) -> int:
    """Return trainable parameters: r * (d_in + d_out) per module (LoRA, arXiv 2106.09685, section 4)."""
    return sum(item.params(r) for item in matched)


def adapter_bytes(matched: Iterable[Matched], r: int, dtype_bytes: int = 4) -> int:
    """Return the bytes of `adapter_model.safetensors`: 8 bytes of length, a padded JSON header, the tensors.

    Layout from the safetensors format description: tensors of one dtype lie in the order of their names, and
    the header holds dtype, shape and offsets of each. PEFT writes fp32 (4 bytes) by default.
    """
    return _file_bytes(tuple(matched), r, dtype_bytes)


# Pages ask for the same presets again and again, each with hundreds of tensors.
@lru_cache(maxsize=256)
def _file_bytes(matched: tuple[Matched, ...], r: int, dtype_bytes: int) -> int:
    dtype = _DTYPES[dtype_bytes]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(tensor for item in matched for tensor in item.tensors(r)):
        start, end = end, end + math.prod(shape) * dtype_bytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    padded = -(-length // 8) * 8
    return 8 + padded + end
