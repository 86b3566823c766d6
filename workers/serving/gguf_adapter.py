"""Write a PEFT adapter as the GGUF file that llama.cpp, Ollama and LM Studio load beside a base model.

For each adapted weight W the file holds `W.lora_a` [r, d_in] and `W.lora_b` [d_out, r] in float32, and one
alpha; llama.cpp adds alpha / r * B A x to the layer's output. Standard library, numpy and gguf's writer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.contract.errors import ModelError
from workers.contract.half_precision import read_header

Matrix = npt.NDArray[np.float32]

# Model type -> (architecture in GGUF, whether query and key rows are stored in another order there).
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>model\.layers\.(?P<layer>\d+)\.(?P<name>[a-z_.]+))\.lora_(?P<half>[AB])\.weight"
)
_NUMPY_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def refusal(weights: Path, model_type: str) -> str:
    """Return the reason why an adapter has no GGUF form, as a sentence; "" if it has one."""
    if model_type not in ARCHITECTURES:
        return "A GGUF adapter is available for Llama, Mistral and Qwen base models."
    with weights.open("rb") as stream:
        names, _start = read_header(stream)
    for name in names:
        tensor = _TENSOR.fullmatch(name)
        if name != "__metadata__" and (not tensor or tensor["name"] not in LAYER_NAMES):
            return f"llama.cpp has no place for the tensor {name}, so this adapter has no GGUF form."
    return ""


def write_gguf_adapter(folder: Path, base_config: dict[str, Any], target: Path) -> None:
    """Write the PEFT folder's adapter to `target`; `base_config` is the base model's config.json.

    Raises ModelError for an adapter that `refusal` names.
    """
    from gguf import GGUFWriter  # half a second of imports that few requests need

    weights, model_type = folder / "adapter_model.safetensors", str(base_config["model_type"])
    if reason := refusal(weights, model_type):
        raise ModelError(reason)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    architecture, is_reordered = ARCHITECTURES[model_type]
    heads = {"attn_q": base_config["num_attention_heads"]}
    heads["attn_k"] = base_config.get("num_key_value_heads") or heads["attn_q"]
    writer = GGUFWriter(target, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(settings["lora_alpha"]))
    for module, name, half, values in _matrices(weights):
        if half == "b":
            if is_reordered and (role := name.split(".")[2]) in heads:
                values = interleave_rotary(values, heads[role])
            values = values * np.float32(_relative_scale(settings, module, rank=values.shape[1]))
        writer.add_tensor(f"{name}.lora_{half}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave_rotary(rows: Matrix, heads: int) -> Matrix:
    """Return the rows [heads * d, n] of a query or key matrix in GGUF's order for Llama models.

    Transformers rotates dimension i of a head together with i + d/2, llama.cpp 2i together with 2i + 1.
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _matrices(weights: Path) -> Iterator[tuple[str, str, str, Matrix]]:
    """Yield (module, name of the weight in GGUF, "a" or "b", values) of every tensor of an adapter."""
    with weights.open("rb") as stream:
        header, start = read_header(stream)
    header.pop("__metadata__", None)
    for tensor_name, facts in sorted(header.items()):
        tensor = _TENSOR.fullmatch(tensor_name)
        assert tensor is not None, "`refusal` names every other tensor"  # noqa: S101
        dtype, offset = _NUMPY_TYPES[facts["dtype"]], start + facts["data_offsets"][0]
        stored = np.memmap(weights, dtype, "r", offset, tuple(facts["shape"]))
        if facts["dtype"] == "BF16":  # the upper half of a float32
            values = (stored.astype("<u4") << 16).view("<f4")
        else:
            values = stored.astype("<f4")
        weight = f"blk.{tensor['layer']}.{LAYER_NAMES[tensor['name']]}.weight"
        yield tensor["module"], weight, tensor["half"].lower(), values


def _relative_scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """Return PEFT's scale of a module divided by llama.cpp's: not 1 with rsLoRA or an alpha pattern."""
    alpha = settings["lora_alpha"]
    for pattern, own in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = own
            break
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return float(scale / (settings["lora_alpha"] / rank))
