"""Commands and files that serve adapters with vLLM, llama.cpp and Ollama, and the cost of a slot in vLLM.

Commands name folders and files as they lie after unpacking a download in the current folder. Standard
library only.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from workers.target_modules.census import Census

# `--max-lora-rank` takes these values only; 16 is its default (vllm/config/lora.py).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_VLLM_RANK = 16
# vLLM's names of the layers that it fuses (`packed_modules_mapping`), for the model types below.
VLLM_NAMES = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "o_proj": "o_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "down_proj": "down_proj",
}
VLLM_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"})
BYTES_PER_VALUE = 2  # vLLM keeps adapters in the base model's bfloat16


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter as a server sees it: name, unpacked folder, last names of its modules, rank."""

    name: str
    folder: str
    modules: frozenset[str]
    rank: int


def vllm_rank(adapters: Sequence[ServedAdapter]) -> int:
    """Return the smallest `--max-lora-rank` that holds every adapter. Raises ValueError above 512."""
    needed = max(adapter.rank for adapter in adapters)
    for rank in VLLM_RANKS:
        if rank >= needed:
            return rank
    raise ValueError(f"vLLM serves ranks up to {VLLM_RANKS[-1]}; this adapter has {needed}.")


def vllm_modules(adapters: Sequence[ServedAdapter], model_type: str) -> list[str] | None:
    """Return vLLM's names of the modules that any of the adapters uses; None if they are not certain.

    A wrong list makes vLLM drop an adapter's weights without an error, so unknown names give no list.
    """
    modules = frozenset().union(*(adapter.modules for adapter in adapters))
    if model_type not in VLLM_MODEL_TYPES or not modules <= set(VLLM_NAMES):
        return None
    return sorted({VLLM_NAMES[module] for module in modules})


def vllm_command(
    base: str, revision: str, model_type: str, adapters: Sequence[ServedAdapter], *, in_4bit: bool = False
) -> str:
    """Return the shell command that serves a base model with these adapters, one argument group per line."""
    rank, modules = vllm_rank(adapters), vllm_modules(adapters, model_type)
    parts = [f"vllm serve {shlex.quote(base)}"]
    if revision:
        parts.append(f"--revision {shlex.quote(revision)}")
    if in_4bit:
        parts.append("--quantization bitsandbytes")
    parts.append("--enable-lora")
    if len(adapters) > 1:
        parts.append(f"--max-loras {len(adapters)}")
    if rank != DEFAULT_VLLM_RANK:
        parts.append(f"--max-lora-rank {rank}")
    if modules:
        parts.append(f"--lora-target-modules {' '.join(modules)}")
    served = (shlex.quote(f"{adapter.name}=./{adapter.folder}") for adapter in adapters)
    parts.append(f"--lora-modules {' '.join(served)}")
    return " \\\n  ".join(parts)


def slot_bytes(census: Census, modules: Sequence[str] | None, rank: int) -> int:
    """Return the bytes that vLLM allocates for each adapter it keeps in memory at `--max-lora-rank` `rank`.

    rank x sum of (d_in + d_out) x 2 bytes over the layers of the language model that `--lora-target-modules`
    names, all of a fused one's parts included; over all layers that vLLM can adapt if it is None.
    """
    wrapped = [
        group
        for group in census.groups
        if group.scope == "decoder" and (name := VLLM_NAMES.get(group.pattern.rpartition(".")[2]))
        if modules is None or name in modules
    ]
    return rank * BYTES_PER_VALUE * sum(group.modules * (group.d_in + group.d_out) for group in wrapped)


def llama_cpp_command(gguf: str) -> str:
    """Return the command that serves a GGUF base model with a GGUF adapter."""
    return f"llama-server --model BASE.gguf --lora {shlex.quote(gguf)}"


def ollama_files(name: str, gguf: str) -> str:
    """Return a Modelfile and the commands that create and start the model."""
    modelfile = f"FROM ./BASE.gguf\nADAPTER ./{gguf}"
    return (
        f"cat > Modelfile <<'END'\n{modelfile}\nEND\n"
        f"ollama create {shlex.quote(name)} -f Modelfile\nollama run {shlex.quote(name)}"
    )
