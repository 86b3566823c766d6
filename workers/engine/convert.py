"""Convert a Llama GGUF into a model folder that transformers and PEFT can train: once, at set-up.

    python -m workers.engine.convert SmolLM2-135M-Instruct.Q4_1.gguf OUT_DIR

Weights become bfloat16 safetensors, the tokenizer and the chat template are rebuilt from the file's own
metadata. Writes aside and renames, so OUT_DIR is complete or absent. Knows only dense Llama models with a
byte-level BPE tokenizer and tied embeddings, and knows nothing of downloads, jobs or rows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from workers.errors import ModelError

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
SPECIAL = 3  # llama.cpp's token type "control"
OUTER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def convert(gguf: Path, out_dir: Path) -> None:
    """Write the model folder `out_dir`; raises ModelError when the file is no model of this kind."""
    if out_dir.exists():
        raise ModelError(f"{out_dir} exists already. Remove it, then convert again.")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        write_folder(GGUFReader(gguf), aside)
        for path in aside.iterdir():
            path.chmod(0o644)
            with path.open("rb") as written:
                os.fsync(written.fileno())
        aside.chmod(0o755)
        aside.rename(out_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_folder(reader: GGUFReader, folder: Path) -> None:
    """All files of the model, straight into `folder`."""
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    config = model_config(metadata)
    # Python's json keeps the key order, so the folder is the same bytes on every machine.
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation_config(metadata))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(metadata))
    build_tokenizer(metadata).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"], encoding="utf-8")
    (folder / "README.md").write_text(card(metadata), encoding="utf-8")
    save_file(read_weights(reader, config), folder / "model.safetensors", metadata={"format": "pt"})


def model_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """transformers' LlamaConfig as JSON values, every number taken from the file."""
    if metadata["general.architecture"] != "llama":
        raise ModelError(
            f"The file holds a {metadata['general.architecture']} model. Only llama is known here."
        )
    heads = metadata["llama.attention.head_count"]
    hidden = metadata["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "max_position_embeddings": metadata["llama.context_length"],
        "rope_theta": metadata["llama.rope.freq_base"],
        # float32 in the file: 9.999999747378752e-06 was written as 1e-5.
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        **_special_ids(metadata),
    }


def generation_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without this file generation would not know where to stop."""
    return {"_from_model_config": False, **_special_ids(metadata)}


def _special_ids(metadata: dict[str, Any]) -> dict[str, int]:
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def read_weights(reader: GGUFReader, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor of the file under its Llama name, in bfloat16, q and k in transformers' row order."""
    weights = {}
    for tensor in reader.tensors:
        name = llama_name(tensor.name)
        # One tensor at a time is float32: the peak stays near the size of the output.
        values = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            values = unpermute(values, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            values = unpermute(values, config["num_key_value_heads"])
        weights[name] = torch.from_numpy(np.array(values, dtype=np.float32)).to(torch.bfloat16)
    expected = len(OUTER_NAMES) + len(BLOCK_NAMES) * config["num_hidden_layers"]
    if len(weights) != expected:
        raise ModelError(f"The file holds {len(weights)} tensors, a model of this shape has {expected}.")
    return weights


def llama_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if not match or match[2] not in BLOCK_NAMES:
        raise ModelError(f"The file holds a tensor named {name}, which a Llama model does not have.")
    return f"model.layers.{match[1]}.{BLOCK_NAMES[match[2]]}.weight"


def unpermute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's row order of q and k: [heads x half x 2, d_in] -> [heads x 2 x half, d_in].

    llama.cpp rotates neighbouring rows (2i, 2i + 1) of a head, transformers rotates row i with row i + half.
    """
    rows, d_in = weight.shape
    half = rows // heads // 2
    return weight.reshape(heads, half, 2, d_in).swapaxes(1, 2).reshape(rows, d_in)


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE from the file's tokens and merges, digits split one by one as in training."""
    if metadata["tokenizer.ggml.model"] != "gpt2":
        raise ModelError(
            f"The tokenizer is of kind {metadata['tokenizer.ggml.model']}. Only gpt2 is known here."
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """The generic fast class: a model's own class would put its own pre-tokenizer back."""
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
    }


def card(metadata: dict[str, Any]) -> str:
    """The folder's README: licence and origin, as its readers and the adapter cards need them."""
    return f"""---
license: {metadata["general.license"]}
language: [{", ".join(metadata["general.languages"])}]
base_model: {NAME}
library_name: transformers
pipeline_tag: text-generation
---
# {NAME.rpartition("/")[2]}

The weights of {NAME}, taken from a 4-bit GGUF file (Q4_1) and stored as bfloat16 safetensors. They are
close to the published weights, not equal to them.
"""


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command line: two paths, one sentence when it does not work."""
    parser = argparse.ArgumentParser(prog="python -m workers.engine.convert", description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out_dir", type=Path)
    arguments = parser.parse_args()
    try:
        convert(arguments.gguf, arguments.out_dir)
    except ModelError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
