"""Round an adapter's fp32 weights to bfloat16, as torch does, which halves its file.

Copies a safetensors file tensor by tensor, so that it need not fit into memory. Needs numpy alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library


def halve(source: Path, target: Path) -> None:
    """Write the safetensors file `source` to `target`, with its fp32 tensors as bfloat16."""
    with source.open("rb") as read, target.open("wb") as write:
        header, first_byte = read_header(read)
        metadata = header.pop("__metadata__", None)
        new_header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
        tensors = sorted(header.items(), key=lambda tensor: tensor[1]["data_offsets"])
        end = 0
        for name, tensor in tensors:
            start, stop = tensor["data_offsets"]
            is_fp32 = tensor["dtype"] == "F32"
            begin, end = end, end + (stop - start) // (2 if is_fp32 else 1)
            dtype = "BF16" if is_fp32 else tensor["dtype"]
            new_header[name] = tensor | {"dtype": dtype, "data_offsets": [begin, end]}
        text = json.dumps(new_header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # safetensors aligns the tensors to 8 bytes
        write.write(len(text).to_bytes(8, "little") + text)
        for _name, tensor in tensors:
            start, stop = tensor["data_offsets"]
            read.seek(first_byte + start)
            values = read.read(stop - start)
            write.write(_rounded(values) if tensor["dtype"] == "F32" else values)


def read_header(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, name -> dtype, shape and offsets, and where its data begin.

    Raises ValueError for another kind of file.
    """
    length = int.from_bytes(stream.read(8), "little")
    if length > HEADER_LIMIT:
        raise ValueError("This is no safetensors file.")
    return json.loads(stream.read(length)), 8 + length


def _rounded(values: bytes) -> bytes:
    """Return the upper 16 bits of fp32 numbers, rounded to nearest and half to even; NaN stays NaN."""
    bits = np.frombuffer(values, dtype="<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, 0x7FC0, rounded).astype("<u2").tobytes()
