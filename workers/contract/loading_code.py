"""The Python that loads an adapter, as its page and its model card show it. Knows no row and no tensor."""

from __future__ import annotations

# As the engine packs a base model; `bnb_4bit_compute_dtype` is left to the reader's own device.
IN_4BIT = (
    'BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True\n)'
)


def loading_code(base: str, revision: str | None, folder: str, *, in_4bit: bool = False) -> str:
    """Lines that load base model, adapter and tokenizer; the base in 4 bits where the adapter knows it so."""
    options = f', revision="{revision}"' if revision else ""
    names, packing = "AutoModelForCausalLM, AutoTokenizer", ""
    if in_4bit:
        names, packing = f"{names}, BitsAndBytesConfig", f"in_4bit = {IN_4BIT}\n"
        options += ", quantization_config=in_4bit"
    return (
        "from peft import PeftModel\n"
        f"from transformers import {names}\n\n"
        f"{packing}"
        f'base = AutoModelForCausalLM.from_pretrained("{base}"{options})\n'
        f'model = PeftModel.from_pretrained(base, "{folder}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
    )
