"""Disk space and memory of an export before it starts: what a merged model takes, by its format."""

from __future__ import annotations

from dataclasses import dataclass

# Per parameter. Q8_0 keeps 32 weights in 34 bytes; norms and biases, which stay larger, are a thousandth.
FILE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "gguf-f16": 2.0, "gguf-q8_0": 34 / 32}
STORED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Python with torch, Transformers and PEFT.
LIBRARY_BYTES = 600_000_000


@dataclass(frozen=True)
class ExportForecast:
    """Bytes of the file, and the most bytes of memory while it is written."""

    file_bytes: int
    memory_bytes: int


def forecast_export(
    format: str, parameters: int, *, stored_dtype: str, changed: int, tokenizer_bytes: int
) -> ExportForecast:
    """Return the forecast for a base model of so many parameters in `stored_dtype`.

    `changed`: parameters of the layers that the adapter changes, which are merged in float32.
    """
    file_bytes = round(FILE_BYTES[format] * parameters) + tokenizer_bytes
    stored = STORED_BYTES.get(stored_dtype, 4)
    merged = stored * parameters + (4 - stored) * changed
    # Transformers writes the whole model in one number format; a GGUF file is written tensor by tensor.
    converted = 4 * parameters if format == "float32" else merged
    return ExportForecast(file_bytes, LIBRARY_BYTES + max(merged, converted))
