"""Convert a Llama GGUF into a model folder that transformers and PEFT can train: once, at set-up.

    python -m workers.engine.base_models.convert SmolLM2-135M-Instruct.Q4_1.gguf OUT_DIR

Transformers reads the file; the weights are stored as bfloat16 safetensors. Writes to a temporary folder and
renames it, so OUT_DIR is complete or absent. Knows nothing of downloads, jobs or rows.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from workers.contract.errors import ModelError

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def convert(gguf: Path, out_dir: Path) -> None:
    """Write the model folder `out_dir`. Raises ModelError when the file cannot be converted."""
    if out_dir.exists():
        raise ModelError(f"{out_dir} exists already. Remove it, then convert again.")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        write_folder(gguf, temporary)
        for path in temporary.iterdir():
            path.chmod(0o644)
            with path.open("rb") as written:
                os.fsync(written.fileno())
        temporary.chmod(0o755)
        temporary.rename(out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_folder(gguf: Path, folder: Path) -> None:
    """Write weights, configuration, tokenizer and card into `folder`."""
    metadata = {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}
    kind = (metadata.get("general.architecture"), metadata.get("tokenizer.ggml.model"))
    if kind != ("llama", "gpt2"):
        raise ModelError(f"The file holds a {kind[0]} model with a {kind[1]} tokenizer. Use llama with gpt2.")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # Stored as float32 in the file: 9.999999747378752e-06 was written as 1e-5.
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file names no pre-tokenizer; SmolLM2 was trained with digits split one by one.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    languages = ", ".join(metadata.get("general.languages", []))
    card = CARD.format(license=metadata.get("general.license", "other"), languages=languages, name=NAME)
    (folder / "README.md").write_text(card, encoding="utf-8")


CARD = """---
license: {license}
language: [{languages}]
base_model: {name}
library_name: transformers
pipeline_tag: text-generation
---
# SmolLM2-135M-Instruct

The weights of {name}, taken from a 4-bit GGUF file (Q4_1) and stored as bfloat16 safetensors. They are
close to the published weights, not equal to them.
"""


def main() -> None:
    """Convert the file named on the command line; print one sentence when it does not work."""
    parser = argparse.ArgumentParser(prog="python -m workers.engine.base_models.convert", description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out_dir", type=Path)
    arguments = parser.parse_args()
    try:
        convert(arguments.gguf, arguments.out_dir)
    except ModelError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
