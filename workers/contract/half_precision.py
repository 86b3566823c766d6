"""Round an adapter's fp32 weights to bfloat16, as torch does, which halves its file.

Copies a safetensors file in pieces, so that it need not fit into memory. Needs numpy alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

NUMBERS_AT_ONCE = 1 << 20


def halve(source: Path, target: Path) -> None:
    """Write the safetensors file `source` to `target`, with its fp32 tensors as bfloat16."""
    with source.open("rb") as read, target.open("wb") as write:
        length = int.from_bytes(read.read(8), "little")
        header: dict[str, Any] = json.loads(read.read(length))
        tensors = sorted(
            (item["data_offsets"][0], name, item) for name, item in header.items() if name != "__metadata__"
        )
        end, new_header = 0, {name: header[name] for name in header if name == "__metadata__"}
        for _start, name, item in tensors:
            is_fp32 = item["dtype"] == "F32"
            start, size = end, item["data_offsets"][1] - item["data_offsets"][0]
            end += size // 2 if is_fp32 else size
            dtype = "BF16" if is_fp32 else item["dtype"]
            new_header[name] = {"dtype": dtype, "shape": item["shape"], "data_offsets": [start, end]}
        text = json.dumps(new_header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # safetensors aligns the tensors to 8 bytes
        write.write(len(text).to_bytes(8, "little") + text)
        for _start, _name, item in tensors:
            read.seek(8 + length + item["data_offsets"][0])
            if item["dtype"] == "F32":
                _round(read, write, math.prod(item["shape"]))
            else:
                write.write(read.read(item["data_offsets"][1] - item["data_offsets"][0]))


def _round(read: BinaryIO, write: BinaryIO, count: int) -> None:
    """Keep the upper 16 bits, rounded to the nearest number and half to even; NaN stays NaN."""
    while count:
        piece = min(count, NUMBERS_AT_ONCE)
        bits = np.frombuffer(read.read(4 * piece), dtype="<u4")
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        write.write(np.where(is_nan, 0x7FC0, rounded).astype("<u2").tobytes())
        count -= piece
