"""Builds and loads a frozen base model and its tokenizer from a folder: safetensors only, no remote code.

Knows nothing of adapters. The folder comes from a spec; no name is ever looked up on a hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.contract.errors import ModelError, RunError
from workers.contract.specs import BaseSpec
from workers.engine.base_models.config_limits import check_config, read_checked_json
from workers.engine.frozen_products import replace_frozen_products

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
MAX_TEMPLATE_BYTES = 64_000
# Settings that change the logits after the head; a model with one of them takes the plain path.
LOGIT_CHANGES = ("logits_scaling", "logit_scale", "final_logit_softcapping", "lm_head_multiplier")


def check_folder(base: BaseSpec) -> None:
    """Raise ModelError for a folder without safetensors, or with program code of its own."""
    folder = Path(base.path)
    config = _read_json(folder / "config.json", base.name)
    tokenizer = _read_json(folder / "tokenizer_config.json", base.name)
    if "auto_map" in config or "auto_map" in tokenizer:
        raise ModelError(
            f"{base.name} brings program code of its own (`auto_map`). Graftworks does not run it. "
            "Choose a model whose architecture transformers knows."
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{base.name} has no weights in safetensors format. Convert them to safetensors; other formats "
            "can hide program code and are not loaded."
        )


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"The folder of {name} has no readable {path.name}.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path.name} of {name} is not a JSON object.")
    return values


def read_config(folder: Path) -> Any:
    """Return the folder's `config.json`; raise ModelError for unusable sizes or an unknown model type."""
    from transformers.models.auto.configuration_auto import AutoConfig

    with model_errors("config.json cannot be used", folder):
        check_config(read_checked_json(folder / "config.json"))
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def auto_class(config: Any) -> Any:
    """Return the transformers class for this type: a language model, with its image tower if any."""
    from transformers.models.auto import modeling_auto

    text_only = type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    with_images = type(config) in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if with_images and not text_only:
        return modeling_auto.AutoModelForImageTextToText
    return modeling_auto.AutoModelForCausalLM


def build(config: Any) -> Any:
    """Return the model on the meta device, without weights, as `load_base` would load it."""
    message = f"A model of type {config.model_type} cannot be built as a causal language model"
    with model_errors(message), torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=False)


@contextlib.contextmanager
def model_errors(message: str, folder: Path | None = None) -> Iterator[None]:
    """Turn every error into a ModelError: Transformers raises any type on a folder it did not expect."""
    try:
        yield
    except (RunError, KeyboardInterrupt, SystemExit):
        raise
    # A panic in the tokenizers' Rust is no Exception.
    except BaseException as error:
        reason = _reason(error)
        # Users know the model's name, not its folder on the server.
        reason = reason.replace(str(folder), folder.name) if folder else reason
        raise ModelError(f"{message}: {reason}") from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def load_tokenizer(base: BaseSpec) -> Any:
    """Return the base model's tokenizer. Call `check_folder` first."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    with model_errors(f"The tokenizer of {base.name} cannot be loaded", Path(base.path)):
        tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    templates = tokenizer.chat_template or ""
    size = len((templates if isinstance(templates, str) else json.dumps(templates)).encode())
    if size > MAX_TEMPLATE_BYTES:
        raise ModelError(
            f"The chat template of {base.name} has {size / 1000:,.0f} kB. The limit is 64 kB. Choose another "
            "base model."
        )
    return tokenizer


def tokenizer_record(base: BaseSpec, tokenizer: Any) -> dict[str, str]:
    """Return the SHA-256 of the tokenizer's files and of its chat template, "" without one."""
    files = hashlib.sha256()
    for name in sorted(TOKENIZER_FILES):
        path = Path(base.path) / name
        if path.is_file():
            files.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    template = tokenizer.chat_template
    text = template if isinstance(template, str) or not template else json.dumps(template, sort_keys=True)
    return {
        "tokenizer_sha256": files.hexdigest(),
        "chat_template_sha256": hashlib.sha256(text.encode()).hexdigest() if text else "",
    }


def load_base(base: BaseSpec, dtype: torch.dtype, device: torch.device, *, in_4bit: bool = False) -> Any:
    """Return the base model, frozen and in evaluation mode, so that its own dropout stays off.

    `in_4bit`: linear layers as NF4 (QLoRA, arXiv 2305.14314), computed in `dtype`; embeddings, norms and head
    keep `dtype`. Raises ModelError.
    """
    with model_errors(f"The weights of {base.name} cannot be loaded", Path(base.path)):
        model = auto_class(read_config(Path(base.path))).from_pretrained(
            base.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **(_quantization_arguments(base, dtype, device) if in_4bit else {}),
        )
    if in_4bit:
        _keep_gradients(model)
    replace_frozen_products(model)
    return model.to(device).requires_grad_(False).eval()


def storage_description(dtype: str, *, in_4bit: bool) -> str:
    """Return in words how the base model is stored in memory."""
    return f"in 4 bits (NF4) and computed as {dtype}" if in_4bit else f"as {dtype}"


def _quantization_arguments(base: BaseSpec, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return `from_pretrained` arguments that quantize each linear layer to 4 bits while it is read."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"Loading {base.name} in 4 bits needs the package bitsandbytes on the worker. Install it, or "
            "turn `load_in_4bit` off.",
            code="no_4bit",
        )
    from transformers.utils.quantization_config import BitsAndBytesConfig

    config_class: Any = BitsAndBytesConfig
    config = config_class(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def _keep_gradients(model: Any) -> None:
    """Turn off a CPU path of bitsandbytes that repacks layers for inference and lets no gradient through."""
    from bitsandbytes.nn.modules import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def max_positions(model: Any) -> int | None:
    """Return the model's maximum number of tokens; None without a limit, as for a recurrent model."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def check_max_length(model: Any, base: BaseSpec, max_length: int) -> None:
    """Raise RunError if `max_length` exceeds the model's positions."""
    limit = max_positions(model)
    if limit and max_length > limit:
        raise RunError(
            f"`max_length` is {max_length:,}, but {base.name} reads at most {limit:,} tokens. "
            f"Set `max_length` to {limit:,} or less.",
            code="max_length_too_long",
        )


def add_stop_hooks(model: Any, check: Callable[[], None]) -> None:
    """Call `check` before each block, forwards and backwards: a stop must not wait for a large batch."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = max(lists, key=len, default=())

    def check_block(_block: nn.Module, inputs: tuple[Any, ...]) -> None:
        check()
        states = inputs[0] if inputs else None
        if isinstance(states, torch.Tensor) and states.requires_grad:
            hook: Any = states.register_hook
            hook(lambda _gradient: check())

    for block in blocks:
        block.register_forward_pre_hook(check_block)


def plain_head(model: Any) -> nn.Linear | None:
    """Return the output head if logits are exactly `hidden @ weight.T`, else None."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return None
    changed = [name for name in LOGIT_CHANGES if getattr(model.config, name, None) not in (None, 1, 1.0)]
    return None if changed else head


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids of tokens that end an answer: the tokenizer's and the model's own."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])]
    # The file that declares them is not checked before a model is loaded.
    return sorted({token for token in ids if isinstance(token, int)})
