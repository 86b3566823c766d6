"""An adapter's weights at half their size: fp32 numbers rounded to bfloat16, as torch would.

Copies a safetensors file tensor by tensor, so that no file has to fit into memory. Needs numpy alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PIECE = 1 << 20  # numbers that are rounded at one time


def halve(source: Path, target: Path) -> None:
    """Write the safetensors file `source` to `target`, its fp32 tensors as bfloat16, all else as it is."""
    with source.open("rb") as read, target.open("wb") as write:
        length = int.from_bytes(read.read(8), "little")
        header: dict[str, Any] = json.loads(read.read(length))
        places = sorted(
            (item["data_offsets"][0], name, item) for name, item in header.items() if name != "__metadata__"
        )
        end, shorter = 0, {name: header[name] for name in header if name == "__metadata__"}
        for _begin, name, item in places:
            is_whole = item["dtype"] == "F32"
            begin, size = end, item["data_offsets"][1] - item["data_offsets"][0]
            end += size // 2 if is_whole else size
            dtype = "BF16" if is_whole else item["dtype"]
            shorter[name] = {"dtype": dtype, "shape": item["shape"], "data_offsets": [begin, end]}
        text = json.dumps(shorter, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # safetensors aligns what follows
        write.write(len(text).to_bytes(8, "little") + text)
        for _begin, _name, item in places:
            read.seek(8 + length + item["data_offsets"][0])
            if item["dtype"] == "F32":
                _round(read, write, math.prod(item["shape"]))
            else:
                write.write(read.read(item["data_offsets"][1] - item["data_offsets"][0]))


def _round(read: BinaryIO, write: BinaryIO, count: int) -> None:
    """To the nearest number that keeps the upper 16 bits, to the even one of two; NaN stays NaN."""
    while count:
        piece = min(count, PIECE)
        bits = np.frombuffer(read.read(4 * piece), dtype="<u4")
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        write.write(np.where(is_nan, 0x7FC0, rounded).astype("<u2").tobytes())
        count -= piece
