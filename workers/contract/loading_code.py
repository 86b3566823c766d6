"""Python code that loads an adapter, for its page and its model card. Knows no row and no tensor."""

from __future__ import annotations

# The quantisation that the engine uses; `bnb_4bit_compute_dtype` depends on the user's device.
QUANTIZATION = (
    'BitsAndBytesConfig(\n    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True\n)'
)


def loading_code(base: str, revision: str | None, folder: str, *, in_4bit: bool = False) -> str:
    """Return lines that load base model, adapter and tokenizer; with `in_4bit` a quantised base model."""
    options = f', revision="{revision}"' if revision else ""
    names, quantization = "AutoModelForCausalLM, AutoTokenizer", ""
    if in_4bit:
        names, quantization = f"{names}, BitsAndBytesConfig", f"in_4bit = {QUANTIZATION}\n"
        options += ", quantization_config=in_4bit"
    return (
        "from peft import PeftModel\n"
        f"from transformers import {names}\n\n"
        f"{quantization}"
        f'base = AutoModelForCausalLM.from_pretrained("{base}"{options})\n'
        f'model = PeftModel.from_pretrained(base, "{folder}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
    )
