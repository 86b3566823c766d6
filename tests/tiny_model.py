"""A tiny random model and tiny data that tests train for real, made in memory in under a second.

Nothing is downloaded. torch and transformers are imported inside the functions, so that web tests may import
this module. The weights are noise: nothing here says anything about quality.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workers.contract.specs import BaseSpec, DataSpec, TargetSpec

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY = 512
HIDDEN = 32
LAYERS = 2


def build_tiny_model(
    folder: Path, *, chat_template: bool = True, model_type: str = "llama", **sizes: Any
) -> Path:
    """Save a random 2-layer, 32-wide model with its tokenizer in `folder` and return it.

    `sizes` are settings that the type needs besides the usual ones, or instead of them.

    The same call gives the same weights, bit for bit. As on the bundled model, pad is the end-of-turn token.
    """
    import torch

    from workers.engine.base_models.model import auto_class

    config = _config(model_type, sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = auto_class(config).from_config(config)
        # The pad row starts as zeros, and pad is the end token: no adapter could make this model stop.
        with torch.no_grad():
            model.get_input_embeddings().weight[2].normal_(std=0.4)
    model.save_pretrained(folder)
    _save_tokenizer(folder, chat_template=chat_template)
    return folder


def _config(model_type: str, changes: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        # Large enough that the frozen, tied head can be sure of an answer: tests overfit for real.
        "initializer_range": 0.4,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if model_type == "gpt2":
        sizes = {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": 1024,
            "initializer_range": 0.4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    return AutoConfig.for_model(model_type, **(sizes | changes))


def _save_tokenizer(folder: Path, *, chat_template: bool) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    if chat_template:
        wrapped.chat_template = CHATML
    wrapped.save_pretrained(folder)


def tiny_base(folder: Path) -> BaseSpec:
    """The base as specs name it; `folder` is what `build_tiny_model` returned."""
    return BaseSpec(
        path=str(folder), name="graftworks/tiny-llama", revision=None, sha256="0" * 64, license="apache-2.0"
    )


def tiny_target(r: int = 4) -> TargetSpec:
    """Attention output of the tiny Llama: one 32 x 32 module per layer."""
    return TargetSpec(
        target_modules=("o_proj",), modules=LAYERS, trainable_parameters=LAYERS * r * 2 * HIDDEN
    )


def chat(prompt: str, answer: str) -> list[dict[str, Any]]:
    """One row of the canonical form: a user turn and its answer."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def colour_rows(count: int = 24) -> list[list[dict[str, Any]]]:
    """Chats that a tiny model can overfit: a number and its colour."""
    colours = ("red", "green", "blue", "grey")
    return [chat(f"Colour of {number}?", colours[number % len(colours)]) for number in range(count)]


def write_canonical(
    folder: Path,
    rows: Sequence[list[dict[str, Any]] | str],
    *,
    validation: Sequence[list[dict[str, Any]] | str] | None = None,
    test: Sequence[list[dict[str, Any]] | str] | None = None,
) -> DataSpec:
    """Write the three Parquet splits of a dataset version; a row is a list of messages or plain text.

    Validation and test rows are the first train rows unless they are given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": rows,
        "validation": rows[:4] if validation is None else validation,
        "test": rows[:4] if test is None else test,
    }
    digest = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()
    number = 1
    for split, split_rows in splits.items():
        _write_split(folder / f"{split}.parquet", split_rows, number)
        number += len(split_rows)
    return DataSpec(path=str(folder), sha256=digest, name="tiny")


def _write_split(path: Path, rows: Sequence[list[dict[str, Any]] | str], first: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = pa.array(range(first, first + len(rows)), pa.int64())
    messages = [None if isinstance(row, str) else json.dumps(row) for row in rows]
    texts = [row if isinstance(row, str) else None for row in rows]
    columns = {
        "row": numbers,
        "messages": pa.array(messages, pa.string()),
        "text": pa.array(texts, pa.string()),
    }
    table = pa.table({**columns, "group": numbers})
    pq.write_table(table, path, compression="zstd")
