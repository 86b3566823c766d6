"""Answers in mixed steps equal, token for token, those of each adapter alone in PEFT's `generate`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional

from tests.tiny_model import build_tiny_model, tiny_base
from workers.contract.errors import ModelError, TargetError
from workers.engine.base_models.model import load_base
from workers.engine.generation.generator import SLOT_TYPES, Generator
from workers.engine.generation.requests import GenerationRequest, Reference, Sampling, sample

CPU = torch.device("cpu")
END = frozenset({2, 5, 6, 7, 8})
FAMILIES = ("gemma3_text", "gemma2", "gpt2", "llama", "mistral", "qwen2", "qwen3")
PLAIN = {"gemma2"}
OUTPUT = {"gpt2": "c_proj"}
ADAPTERS: dict[str, dict[str, Any]] = {
    "output": {"r": 4},
    "all.2": {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"},
    "top": {"r": 8, "layers_to_transform": [1]},
    "dora": {"r": 2, "use_dora": True},
}


def load(folder: Path) -> Any:
    return load_base(tiny_base(folder), torch.float32, CPU)


def save_adapter(folder: Path, target: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write an adapter with random weights in A and B."""
    model = load(folder)
    settings = {"target_modules": [OUTPUT.get(model.config.model_type, "o_proj")]} | settings
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    get_peft_model(model, config).save_pretrained(target)
    return target


@functools.cache
def load_alone(folder: Path, adapter: Path | None) -> Any:
    """Return the base model as PEFT runs it with this adapter."""
    return load(folder) if adapter is None else PeftModel.from_pretrained(load(folder), adapter).eval()


def answer_alone(folder: Path, adapter: Path | None, request: GenerationRequest) -> list[int]:
    """Return PEFT's own greedy answer, without the end token."""
    model = load_alone(folder, adapter)
    ids = torch.as_tensor(np.asarray(request.prompt)[None], dtype=torch.int64)
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=request.sampling.max_new_tokens,
        eos_token_id=sorted(request.end_ids) or None,
        pad_token_id=0,
    )
    answer: list[int] = output[0, ids.shape[1] :].tolist()
    return answer[:-1] if answer and answer[-1] in request.end_ids else answer


def answers(
    generator: Generator,
    requests: list[GenerationRequest],
    at_step: Callable[[int], None] = lambda step: None,
) -> dict[Any, list[int]]:
    """Submit four requests at once, one more before each step, and return all answers."""
    found: dict[Any, list[int]] = {}
    waiting = list(requests)
    for request in [waiting.pop(0) for _ in requests[:4]]:
        generator.submit(request)
    step = 0
    while not generator.is_idle:
        for token in generator.step():
            assert (token.id is None) == (token.finish == "stop")
            found.setdefault(token.key, []).extend([] if token.id is None else [token.id])
        if waiting:
            generator.submit(waiting.pop(0))
        step += 1
        at_step(step)
    return found


def mixed_requests(count: int = 12) -> list[GenerationRequest]:
    """Prompts of different lengths to all adapters in turn; most begin with the same twelve tokens."""
    random = np.random.default_rng(0)
    start = random.integers(9, 500, 12)
    names = [None, *ADAPTERS]
    requests = []
    for number in range(count):
        rest = random.integers(9, 500, 1 + 3 * number % 11)
        prompt = np.concatenate([start, rest]) if number % 3 else rest
        sampling = Sampling(6 + number % 4)
        requests.append(GenerationRequest(number, prompt, names[number % len(names)], sampling, END))
    return requests


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model of a type, built when it is first asked for."""
    root = tmp_path_factory.mktemp("models")
    return functools.cache(lambda model_type: build_tiny_model(root / model_type, model_type=model_type))


@pytest.fixture(scope="module")
def folder(folders: Callable[[str], Path]) -> Path:
    return folders("llama")


@pytest.fixture
def make_generator(folder: Path) -> Callable[..., Generator]:
    limits = {"max_rows": 4, "max_tokens": 1024}
    return lambda **changes: Generator(load(folder), CPU, **(limits | changes))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_mixed_requests_are_answered_as_each_alone(
    folders: Callable[[str], Path], tmp_path: Path, model_type: str
) -> None:
    folder = folders(model_type)
    generator = Generator(load(folder), CPU, max_rows=4, max_tokens=1024)
    assert generator.is_batched is (model_type not in PLAIN)
    adapters = {
        name: save_adapter(folder, tmp_path / name, seed=seed, **settings)
        for seed, (name, settings) in enumerate(ADAPTERS.items())
        if model_type != "gpt2" or name != "dora"  # PEFT has no DoRA on GPT-2's layers
    }
    for name, path in adapters.items():
        generator.load_adapter(name, path)
    requests = [item for item in mixed_requests() if item.adapter is None or item.adapter in adapters]
    cancelled = requests[3].key
    found = answers(generator, requests, lambda step: generator.cancel(cancelled) if step == 2 else None)
    for request in requests:
        alone = answer_alone(folder, adapters.get(request.adapter or ""), request)
        if request.key == cancelled:
            assert found[request.key] == alone[:2]
        else:
            assert found[request.key] == alone


def test_rounding_in_16_bits_does_not_take_the_slots_away(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "allclose", lambda *_logits, **_tolerances: False)
    found = {
        (model_type, dtype): Generator(
            load_base(tiny_base(folders(model_type)), dtype, CPU), CPU, max_rows=4, max_tokens=1024
        ).is_batched
        for model_type in ("llama", "olmo2")
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert [key for key, is_batched in found.items() if is_batched] == [("llama", torch.bfloat16)]
    assert set(FAMILIES) - PLAIN == SLOT_TYPES


def test_a_prompt_without_slot_has_logits_at_its_end_alone(folders: Callable[[str], Path]) -> None:
    base, positions = load(folders("gemma2")), list[int]()
    base.register_forward_hook(lambda _base, _arguments, output: positions.append(output.logits.shape[1]))
    generator = Generator(base, CPU, max_rows=4, max_tokens=1024)
    generator.submit(GenerationRequest(1, np.arange(9, 49, dtype=np.int32), None, Sampling(3)))
    while not generator.is_idle:
        generator.step()
    assert positions == [1, 1, 1]


def test_a_sliding_window_is_kept(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "m", model_type="mistral", sliding_window=16)
    generator = Generator(load(folder), CPU, max_rows=4, max_tokens=1024)
    prompt = np.random.default_rng(1).integers(9, 500, 40)
    requests = [GenerationRequest(length, prompt[:length], None, Sampling(8)) for length in (40, 39, 4, 20)]
    found = answers(generator, requests)
    assert generator.is_batched
    for request in requests:
        assert found[request.key] == answer_alone(folder, None, request)


def test_a_long_prompt_is_read_in_parts_beside_other_rows(
    folder: Path, make_generator: Callable[..., Generator]
) -> None:
    random = np.random.default_rng(2)
    long, short = random.integers(9, 500, 700), random.integers(9, 500, 5)
    requests = [
        GenerationRequest("short", short, None, Sampling(8)),
        GenerationRequest("long", long, None, Sampling(4)),
    ]
    generator = make_generator(max_tokens=2048)
    firsts = []
    for request in requests:
        generator.submit(request)
    found: dict[Any, list[int]] = {"short": [], "long": []}
    while not generator.is_idle:
        tokens = generator.step()
        firsts.append([token.key for token in tokens])
        for token in tokens:
            assert token.id is not None
            found[token.key].append(token.id)
    assert firsts[:3] == [["short"], ["short"], ["short", "long"]]
    for request in requests:
        assert found[request.key] == answer_alone(folder, None, request)


def test_requests_wait_for_room(make_generator: Callable[..., Generator]) -> None:
    generator = make_generator(max_tokens=256)
    random = np.random.default_rng(3)
    for key, length in enumerate((10, 100, 20, 20)):
        generator.submit(GenerationRequest(key, random.integers(9, 500, length), None, Sampling(5)))
    steps = []
    while not generator.is_idle:
        steps.append({token.key for token in generator.step()})
    # The second needs 128 tokens for each slot, so two rows fit; the first runs already.
    assert steps[0] == {0, 1}
    assert {2, 3} <= set.union(*steps[5:])
    assert {0, 2} not in steps


@pytest.mark.parametrize(
    ("prompt", "tokens"), [(np.arange(9, 209), 100), (np.arange(0), 5), (np.arange(9, 12), 0)]
)
def test_a_request_that_can_never_run_is_refused(
    make_generator: Callable[..., Generator], prompt: Any, tokens: int
) -> None:
    generator = make_generator(max_tokens=256)
    with pytest.raises(ValueError, match="needs"):
        generator.submit(GenerationRequest(1, prompt, None, Sampling(tokens)))
    with pytest.raises(KeyError):
        generator.submit(GenerationRequest(2, np.arange(9, 12), "unknown", Sampling(5)))
    assert generator.is_idle


def test_adapters_are_loaded_used_and_unloaded(
    folder: Path, make_generator: Callable[..., Generator], tmp_path: Path
) -> None:
    generator = make_generator()
    for seed, name in enumerate("abc"):
        generator.load_adapter(name, save_adapter(folder, tmp_path / name, seed=seed, r=4))
    request = GenerationRequest(1, np.arange(9, 20), "a", Sampling(4))
    generator.submit(request)
    assert generator.adapters == ["b", "c", "a"]
    with pytest.raises(ValueError, match="in use"):
        generator.unload_adapter("a")
    while not generator.is_idle:
        generator.step()
    for name in "abc":
        generator.unload_adapter(name)
    assert generator.adapters == []
    # Another adapter of the same name must not find the keys and values of the earlier one.
    generator.load_adapter("a", tmp_path / "b")
    assert answers(generator, [request]) == {1: answer_alone(folder, tmp_path / "b", request)}


def test_a_folder_without_safetensors_is_refused(
    folder: Path, make_generator: Callable[..., Generator], tmp_path: Path
) -> None:
    path = save_adapter(folder, tmp_path / "a", r=4)
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        make_generator().load_adapter("a", path)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_an_adapter_with_biases_is_refused_and_the_base_stays(
    folders: Callable[[str], Path], tmp_path: Path, bias: str
) -> None:
    folder = folders("gpt2")
    base = load(folder)
    generator = Generator(base, CPU, max_rows=4, max_tokens=1024)
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    with pytest.raises(ModelError, match="bias"):
        generator.load_adapter("a", save_adapter(folder, tmp_path / "a", r=4, bias=bias))
    after = dict(base.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("loaded", [False, True])
def test_an_adapter_of_other_shapes_is_refused_and_leaves_nothing(
    folder: Path, make_generator: Callable[..., Generator], tmp_path: Path, loaded: bool
) -> None:
    other = build_tiny_model(tmp_path / "other", hidden_size=64)
    good = save_adapter(folder, tmp_path / "good", r=4)
    generator = make_generator()
    if loaded:
        generator.load_adapter("first", good)
    with pytest.raises(TargetError):
        generator.load_adapter("a", save_adapter(other, tmp_path / "a", r=4))
    assert "a" not in generator.adapters
    generator.load_adapter("a", good)
    request = GenerationRequest(1, np.arange(9, 20), "a", Sampling(4))
    assert answers(generator, [request]) == {1: answer_alone(folder, good, request)}


def test_drawn_answers_depend_on_the_seed_alone(make_generator: Callable[..., Generator]) -> None:
    def draw(seed: int, others: int) -> list[int]:
        generator = make_generator()
        sampling = Sampling(8, temperature=1.5, top_p=0.9, seed=seed)
        requests = [GenerationRequest("drawn", np.arange(9, 20), None, sampling)]
        requests += [
            GenerationRequest(key, np.arange(9, 15 + key), None, Sampling(6)) for key in range(others)
        ]
        return answers(generator, requests)["drawn"]

    assert draw(1, 0) == draw(1, 3) != draw(2, 0)


def test_top_p_draws_the_likeliest_tokens_alone() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = {sample(logits, Sampling(1, temperature=1.0, top_p=0.7), generator) for _ in range(200)}
    assert drawn == {0, 1}
    assert {sample(logits, Sampling(1), generator) for _ in range(5)} == {0}


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@pytest.mark.parametrize("known", [0, 1, 3, 6])
def test_a_reference_is_scored_and_answered_in_one(
    folders: Callable[[str], Path], tmp_path: Path, model_type: str, known: int
) -> None:
    """The reference begins with `known` tokens that the model itself would choose."""
    folder = folders(model_type)
    adapter = save_adapter(folder, tmp_path / "a", r=4)
    model = load_alone(folder, adapter)
    generator = Generator(load(folder), CPU, max_rows=4, max_tokens=1024)
    generator.load_adapter("a", adapter)
    prompts = [np.arange(9, 25), np.append(np.arange(9, 21), 7), np.arange(9, 23)]
    asked = [GenerationRequest(key, prompt, "a", Sampling(6), END) for key, prompt in enumerate(prompts)]
    alone = [answer_alone(folder, adapter, request) for request in asked]
    rows = [
        np.array([*prompt, *answer[:known], 100, 101]) for prompt, answer in zip(prompts, alone, strict=True)
    ]
    targets = np.array([5, 11, *range(16, len(rows[0]))])
    for request, row in zip(asked, rows, strict=True):
        own = targets[targets < len(row)]
        generator.submit(dataclasses.replace(request, reference=Reference(row, own)))
        generator.submit(
            GenerationRequest(f"only {request.key}", row, "a", Sampling(0), END, Reference(row, own))
        )
    found: dict[Any, list[int]] = {}
    losses = {}
    steps = 0
    while not generator.is_idle:
        steps += 1
        for token in generator.step():
            found.setdefault(token.key, []).extend([] if token.id is None else [token.id])
            if token.losses is not None:
                losses[token.key] = token.losses
    for request, row, answer in zip(asked, rows, alone, strict=True):
        assert found[request.key] == answer
        own = targets[targets < len(row)]
        with torch.no_grad():
            logits = model(input_ids=torch.as_tensor(row)[None]).logits[0]
        expected = functional.cross_entropy(logits[own - 1], torch.as_tensor(row[own]), reduction="none")
        for key in (request.key, f"only {request.key}"):
            assert losses[key].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
