"""Writes a merged model as one GGUF file, which llama.cpp, Ollama and LM Studio load.

The `gguf` package knows the file's layout, the names of tensors and the quantisation. Added here is what the
file says of four model types and of three kinds of tokenizer; every other one is refused, because such a file
loads and answers wrongly.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from workers.contract.errors import ModelError
from workers.contract.events import Progress, Report, ShouldStop
from workers.contract.specs import ExportSpec
from workers.engine.base_models.model import read_config
from workers.engine.runtime import stop_if_asked
from workers.serving.gguf_adapter import ARCHITECTURES, interleave_rotary

Array = npt.NDArray[np.float32]
FILE_TYPES = {
    "gguf-f16": (gguf.LlamaFileType.MOSTLY_F16, gguf.GGMLQuantizationType.F16),
    "gguf-q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
}
# llama.cpp splits text before its merges by a name. The expressions are those of Qwen 2 and Llama 3.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BY_EXPRESSION = {WORDS % r"\p{N}": "qwen2", WORDS % r"\p{N}{1,3}": "llama-bpe"}
ROPE_TYPES = ("default", "linear", "llama3")


def check(spec: ExportSpec) -> None:
    """Raise ModelError for a model or a tokenizer that this module cannot write."""
    config = read_config(Path(spec.base.path))
    fault = (
        f"models of type {config.model_type}" if config.model_type not in ARCHITECTURES else _fault(config)
    )
    if not fault and not pre_tokenizer(Path(spec.adapter)):
        fault = "this model's tokenizer"
    if fault:
        raise ModelError(
            f"Graftworks cannot write {fault} into a GGUF file. Export safetensors, and convert the folder "
            "with llama.cpp's own program."
        )


def _fault(config: Any) -> str:
    """Return a setting of a known model type that GGUF cannot express; "" if there is none."""
    rope, window = rope_parameters(config), getattr(config, "sliding_window", None)
    faults = {
        f"activations of type {config.hidden_act}": config.hidden_act != "silu",
        f"positions of type {rope['rope_type']}": rope["rope_type"] not in ROPE_TYPES,
        "positions of a part of each head": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "attention to a window": bool(window) and window < config.max_position_embeddings,
    }
    return next((words for words, is_found in faults.items() if is_found), "")


def rope_parameters(config: Any) -> dict[str, Any]:
    """Return the settings of rotary positions, with their type."""
    return {"rope_type": "default", **(getattr(config, "rope_parameters", None) or {})}


def pre_tokenizer(folder: Path) -> str:
    """Return llama.cpp's name for the way in which a tokenizer splits text; "" if it has none."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    splitter = tokenizer.get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers", [splitter])
    last = parts[-1]
    if tokenizer["model"].get("type") != "BPE" or last.get("type") != "ByteLevel":
        return ""
    if last.get("add_prefix_space") or (tokenizer.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        return ""
    if len(parts) == 1:
        return "gpt-2" if last.get("use_regex", True) else ""
    first = parts[0]
    if len(parts) == 2 and first.get("type") == "Digits" and first.get("individual_digits"):
        return "smollm" if last.get("use_regex", True) else ""
    if len(parts) == 2 and first.get("type") == "Split" and not last.get("use_regex", True):
        return BY_EXPRESSION.get(first.get("pattern", {}).get("Regex", ""), "")
    return ""


def write_gguf(model: Any, spec: ExportSpec, folder: Path, report: Report, should_stop: ShouldStop) -> Path:
    """Write `folder/NAME.gguf` and return it. Each tensor is converted when its turn comes."""
    target = folder / f"{spec.name}.gguf"
    architecture, _is_reordered = ARCHITECTURES[model.config.model_type]
    with contextlib.closing(gguf.GGUFWriter(target, architecture)) as writer:
        _write(writer, model, spec, report, should_stop)
    return target


def _write(writer: Any, model: Any, spec: ExportSpec, report: Report, should_stop: ShouldStop) -> None:
    config = model.config
    file_type, quantization = FILE_TYPES[spec.format]
    writer.add_name(spec.name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if spec.base.license:
        writer.add_license(spec.base.license)
    _add_sizes(writer, config)
    _add_tokenizer(writer, Path(spec.adapter), config.vocab_size)
    kinds = {}
    for name, values in tensors(model, writer.arch):
        kinds[name] = kind = tensor_type(tuple(values.shape), quantization)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = values.numel() // block * block_bytes
        writer.add_tensor_info(name, values.shape, np.dtype(np.float32), size, raw_dtype=kind)
    total, done = sum(info.nbytes for info in writer.tensors[0].values()), 0
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, values in tensors(model, writer.arch):
        stop_if_asked(should_stop)
        report(Progress("writing", done, total))
        stored = gguf.quants.quantize(_as_stored(values, name, config), kinds[name])
        if not np.isfinite(stored).all():
            raise ModelError(f"The tensor {name} has values that float16 cannot hold. Export safetensors.")
        writer.write_tensor_data(stored)
        done += stored.nbytes


def tensors(model: Any, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the model's tensors by their names in GGUF; a head that is the embeddings only once."""
    config = model.config
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for own, values in model.state_dict().items():
        if own == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"GGUF has no place for the tensor {own}. Export safetensors.")
        yield name, values
    rope = rope_parameters(config)
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", rope_factors(config, rope["rope_theta"])


def tensor_type(shape: tuple[int, ...], wanted: Any) -> Any:
    """Return the number format of a tensor: norms and biases stay float32, short rows float16."""
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    block, _size = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def rope_factors(config: Any, theta: float) -> torch.Tensor:
    """Return by how much Llama 3 slows the rotation of each pair of dimensions, [head_dim / 2]."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    slowed, _attention = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(slowed)
    return (1.0 / theta ** (torch.arange(0, size, 2) / size)) / slowed


def _as_stored(values: torch.Tensor, name: str, config: Any) -> Array:
    """Return a tensor in float32 and in GGUF's order of rows."""
    array: Array = values.detach().float().numpy()
    _architecture, is_reordered = ARCHITECTURES[config.model_type]
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    for part, count in heads.items():
        if is_reordered and part in name:
            return interleave_rotary(array.reshape(len(array), -1), count).reshape(array.shape)
    return array


def _add_sizes(writer: Any, config: Any) -> None:
    """Add the model's sizes and its positions."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = rope_parameters(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _add_tokenizer(writer: Any, folder: Path, vocabulary: int) -> None:
    """Add the tokens, their merges, the special tokens and the chat template."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    by_id = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.get_added_tokens_decoder()
    tokens, kinds = [], []
    for number in range(vocabulary):
        kind = gguf.TokenType.NORMAL if number in by_id else gguf.TokenType.UNUSED
        if number in added:
            is_special = added[number].special
            kind = gguf.TokenType.CONTROL if is_special else gguf.TokenType.USER_DEFINED
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        kinds.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(folder))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocabulary)
    first = tokenizer.encode("a").ids[:1]
    special.add_special_token["bos"] = first == [special.special_token_ids.get("bos")]
    special.add_to_gguf(writer, quiet=True)
