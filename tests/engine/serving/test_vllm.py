"""A vLLM server, started as the adapter page says, answers as PEFT does and loads adapters while it runs.

VLLM names its program, of an environment of its own: `VLLM=…/bin/vllm pytest -m proof`.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pytest_django import Settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from dashboard.inference_server import stream_from_server
from dashboard.models import Adapter
from dashboard.models.adapters.unloading import unload
from tests.servers import free_port
from workers.contract.chat import ChatSettings, Text
from workers.contract.judge import Endpoint
from workers.serving.commands import ServedAdapter, vllm_command
from workers.serving.smoke_test import Question, vllm_program

BUNDLED = Path(__file__).parents[3] / ".cache/bundled/SmolLM2-135M-Instruct"
START_SECONDS, TOKENS = 300, 24
# A small machine without a GPU; float32 gives the same tokens as PEFT.
LIMITS = ["--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "4", "--enforce-eager"]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Name -> adapted modules and rank.
ADAPTERS: dict[str, tuple[list[str], int]] = {
    "output-v1": (["o_proj"], 16),
    "all-v2": (EVERYWHERE, 24),
    "late-v1": (["o_proj"], 8),
}
STARTED_WITH = ("output-v1", "all-v2")
PROMPTS = [
    "Name three colours.",
    "The printer on the second floor is broken. What should I do?",
    "Write a short poem about rain.",
    "What is the capital of France?",
    "Give me a JSON object with name and age.",
    "Explain gravity to a child.",
]


@dataclass(frozen=True)
class Vllm:
    """A running server: its address, the folder of the adapters, and PEFT's answers by model and prompt."""

    url: str
    folder: Path
    answers: dict[str, list[str]]

    def ask(self, model: str, prompt: str) -> str:
        """Return the greedy answer to a prompt."""
        body = {"model": model, "messages": chat(prompt), "max_tokens": TOKENS, "temperature": 0}
        answer = httpx2.post(f"{self.url}/chat/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def models(self) -> set[str]:
        return {model["id"] for model in httpx2.get(f"{self.url}/models").json()["data"]}


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def make_adapters(folder: Path) -> dict[str, list[str]]:
    """Save random adapters of the bundled model, and return PEFT's answers of each and of the base model."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    answers: dict[str, list[str]] = {}
    for number, (name, (modules, rank)) in enumerate(ADAPTERS.items()):
        torch.manual_seed(number)
        base = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
        adapted = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, task_type="CAUSAL_LM")
        model: Any = get_peft_model(base, adapted)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.02 if rank < 24 else 0.004)
        model.save_pretrained(folder / name)
        answers[name] = greedy(model, tokenizer)
        if not number:
            with model.disable_adapter():
                answers["./base"] = greedy(model, tokenizer)
    return answers


def greedy(model: PeftModel, tokenizer: Any) -> list[str]:
    """Return the answers to all prompts."""
    answers = []
    for prompt in PROMPTS:
        tensors = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        inputs = tokenizer.apply_chat_template(chat(prompt), **tensors)
        output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        tokens = output[0, inputs["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return answers


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """Start the server with the page's command, on a port of its own and with the limits of this machine."""
    if not (program := os.environ.get("VLLM")):
        pytest.skip("VLLM names no program.")
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "base").symlink_to(BUNDLED)
    answers = make_adapters(folder)
    served = [
        ServedAdapter(name, name, frozenset(ADAPTERS[name][0]), ADAPTERS[name][1]) for name in STARTED_WITH
    ]
    _vllm, *options = shlex.split(vllm_command("./base", "", "llama", served).replace("\\\n", " "))
    port = free_port()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    with (folder / "vllm.log").open("w") as log:
        process = subprocess.Popen(
            [program, *options, *LIMITS, *address],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT},
            stdout=log,
            stderr=log,
        )
        try:
            await_start(f"http://127.0.0.1:{port}/health", process, folder / "vllm.log")
            yield Vllm(f"http://127.0.0.1:{port}/v1", folder, answers)
        finally:
            process.terminate()
            process.wait(timeout=60)


def await_start(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server answers."""
    ends_at = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < ends_at, log.read_text()[-3000:]
        try:
            httpx2.get(url, timeout=5).raise_for_status()
        except httpx2.HTTPError:
            time.sleep(1)
        else:
            return


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("model", ["./base", *STARTED_WITH])
def test_it_answers_as_peft_does(vllm: Vllm, model: str) -> None:
    assert [vllm.ask(model, prompt) for prompt in PROMPTS] == vllm.answers[model]


def smoke_test(vllm: Vllm, model: str) -> subprocess.CompletedProcess[str]:
    """Run the page's program on a prompt whose answers differ."""
    pairs = zip(vllm.answers["./base"], vllm.answers[STARTED_WITH[0]], strict=True)
    number, (base, adapted) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
    program = vllm_program(Question("", PROMPTS[number], base, adapted), "./base", model)
    program = program.replace("http://localhost:8000/v1", vllm.url)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


@pytest.mark.proof
@pytest.mark.slow
def test_the_smoke_test_tells_an_adapter_from_the_base_model(vllm: Vllm) -> None:
    applied = smoke_test(vllm, STARTED_WITH[0])
    assert applied.returncode == 0, applied.stdout + applied.stderr
    silent = smoke_test(vllm, "./base")
    assert silent.returncode == 1
    assert "The adapter is not applied" in silent.stderr


@pytest.mark.proof
@pytest.mark.slow
def test_an_adapter_is_loaded_at_its_first_request_and_unloaded(vllm: Vllm, settings: Settings) -> None:
    settings.INFERENCE_SERVER = Endpoint(vllm.url, "./base", "")
    adapter = Adapter(folder="late-v1")
    shutil.copytree(vllm.folder / "late-v1", adapter.path(), dirs_exist_ok=True)
    answers = [asyncio.run(stream(adapter, prompt)) for prompt in PROMPTS]
    assert answers == vllm.answers["late-v1"]
    assert "late-v1" in vllm.models()
    unload([adapter.folder])
    assert "late-v1" not in vllm.models()


async def stream(adapter: Adapter, prompt: str) -> str:
    """Return an answer as the web process relays it."""
    parts = await stream_from_server(adapter, chat(prompt), ChatSettings(max_tokens=TOKENS, temperature=0.0))
    return "".join([part.text async for part in parts if isinstance(part, Text)])
