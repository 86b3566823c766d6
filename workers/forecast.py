"""Numbers before the run, by plain arithmetic over a census: parameters and file size of an adapter.

Standard library only; knows nothing of rows or tensors. Measured values replace these where a run has them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from workers.census import Matched

_DTYPES = {4: "F32", 2: "BF16"}


def adapter_params(matched: Iterable[Matched], r: int) -> int:
    """Trainable parameters: r * (d_in + d_out) per module (LoRA, arXiv 2106.09685, section 4)."""
    return sum(one.params(r) for one in matched)


def adapter_bytes(matched: Iterable[Matched], r: int, dtype_bytes: int = 4) -> int:
    """Size of `adapter_model.safetensors`: 8 bytes of length, a JSON header padded to 8, then the tensors.

    Layout from the safetensors format description: tensors of one dtype lie in the order of their names, and
    the header holds dtype, shape and offsets of each. PEFT writes fp32 (4 bytes) unless told otherwise.
    """
    dtype = _DTYPES[dtype_bytes]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(tensor for one in matched for tensor in one.tensors(r)):
        start, end = end, end + math.prod(shape) * dtype_bytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")).encode())
    padded = -(-length // 8) * 8
    return 8 + padded + end
