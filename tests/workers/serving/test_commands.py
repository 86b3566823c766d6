"""Commands for vLLM, llama.cpp and Ollama."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import tiny_census
from workers.serving.commands import (
    ServedAdapter,
    llama_cpp_command,
    ollama_files,
    slot_bytes,
    vllm_command,
    vllm_modules,
    vllm_rank,
)
from workers.target_modules.census import Census

OUTPUT = ServedAdapter("triage-v1", "triage-v1", frozenset({"o_proj"}), 16)
ALL = ServedAdapter(
    "it's all", "all-v2", frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}), 24
)


def options(command: str) -> list[str]:
    return shlex.split(command.replace("\\\n", " "))


def test_one_small_adapter_needs_no_rank() -> None:
    assert options(vllm_command("org/base", "", "llama", [OUTPUT])) == [
        *("vllm", "serve", "org/base", "--enable-lora", "--lora-target-modules", "o_proj"),
        *("--lora-modules", "triage-v1=./triage-v1"),
    ]


def test_several_adapters_share_the_union_of_modules_and_the_highest_rank() -> None:
    assert options(vllm_command("org/base", "abc", "qwen2", [OUTPUT, ALL], in_4bit=True)) == [
        *(
            "vllm",
            "serve",
            "org/base",
            "--revision",
            "abc",
            "--quantization",
            "bitsandbytes",
            "--enable-lora",
        ),
        *("--max-loras", "2", "--max-lora-rank", "32"),
        *("--lora-target-modules", "gate_up_proj", "o_proj", "qkv_proj"),
        *("--lora-modules", "triage-v1=./triage-v1", "it's all=./all-v2"),
    ]


@pytest.mark.parametrize(("rank", "snapped"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320), (512, 512)])
def test_ranks_are_raised_to_one_that_vllm_takes(rank: int, snapped: int) -> None:
    assert vllm_rank([ServedAdapter("a", "a", frozenset(), rank)]) == snapped


def test_vllm_refuses_a_rank_above_512() -> None:
    with pytest.raises(ValueError, match="513"):
        vllm_rank([ServedAdapter("a", "a", frozenset(), 513)])


@pytest.mark.parametrize(
    ("modules", "model_type"), [({"o_proj"}, "gpt_neox"), ({"o_proj", "embed_tokens"}, "llama")]
)
def test_uncertain_modules_are_not_listed(modules: set[str], model_type: str) -> None:
    adapter = ServedAdapter("a", "a", frozenset(modules), 16)
    assert vllm_modules([adapter], model_type) is None
    assert "--lora-target-modules" not in vllm_command("base", "", model_type, [adapter])


def test_a_slot_holds_both_matrices_of_every_adapted_layer() -> None:
    """The tiny model: 2 layers, hidden 32, 4 heads of 8, 2 key-value heads, MLP 64."""
    census = Census.from_dict(dict(tiny_census()))
    output = 2 * (32 + 32)
    fused = 2 * ((32 + 32) + 2 * (32 + 16))
    mlp = 2 * (2 * (32 + 64) + (64 + 32))
    assert slot_bytes(census, ["o_proj"], 16) == 16 * 2 * output
    assert slot_bytes(census, ["o_proj", "qkv_proj"], 8) == 8 * 2 * (output + fused)
    assert slot_bytes(census, None, 64) == 64 * 2 * (output + fused + mlp)


def test_llama_cpp_and_ollama_name_the_gguf_file() -> None:
    assert options(llama_cpp_command("it's v1.gguf"))[-2:] == ["--lora", "it's v1.gguf"]
    assert "ADAPTER ./triage-v1.gguf\n" in ollama_files("triage-v1", "triage-v1.gguf")


@pytest.mark.proof
def test_vllm_parses_the_commands() -> None:
    if not (python := os.environ.get("VLLM_PYTHON")):
        pytest.skip("VLLM_PYTHON names no Python with vLLM.")
    commands = [
        vllm_command("org/base", "abc", "llama", [OUTPUT]),
        vllm_command("./base model", "", "qwen2", [OUTPUT, ALL], in_4bit=True),
        vllm_command("org/base", "", "phi", [ServedAdapter("a", "a", frozenset({"dense"}), 512)]),
    ]
    program = Path(__file__).parents[2] / "proof/vllm_arguments.py"
    done = subprocess.run([python, program], input="\0".join(commands), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    one, several, unknown = map(json.loads, done.stdout.splitlines()[-3:])
    assert one == {
        "model": "org/base",
        "adapters": {"triage-v1": "./triage-v1"},
        "rank": 16,
        "modules": ["o_proj"],
        "loads_adapters": True,
        "slots": 1,
        "revision": "abc",
        "quantization": None,
    }
    assert several["adapters"] == {"triage-v1": "./triage-v1", "it's all": "./all-v2"}
    assert several["modules"] == ["gate_up_proj", "o_proj", "qkv_proj"]
    assert (several["model"], several["rank"], several["slots"]) == ("./base model", 32, 2)
    assert several["quantization"] == "bitsandbytes"
    assert (unknown["modules"], unknown["rank"]) == (None, 512)
