"""Memory of the inference engine: what it takes beside the formula, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests.engine.conftest import Recorder
from tests.engine.serving.chats import run_engine, save_adapter
from tests.tiny_model import build_tiny_model, tiny_base
from workers.contract.chat import ChatRequest, ChatSettings
from workers.contract.errors import OutOfMemory
from workers.contract.specs import ServeSpec
from workers.engine import runtime
from workers.engine.base_models.model import load_base, load_tokenizer
from workers.engine.generation.generator import Generator
from workers.engine.serving.memory import fit_tokens, served_model
from workers.engine.serving.prompts import PromptEncoder
from workers.engine.serving.server import ChatModel, Refusal, serve
from workers.forecasting.inference_cost import RESERVE_BYTES

CPU = torch.device("cpu")
SetRoom = Callable[[int], None]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ServeSpec:
    folder = tmp_path_factory.mktemp("memory")
    base = build_tiny_model(folder / "base")
    for seed in (1, 2):
        save_adapter(folder / "adapters" / (str(seed) * 64), base, seed)
    return ServeSpec(
        base=tiny_base(base),
        socket=str(folder / "run" / "base.sock"),
        adapters=str(folder / "adapters"),
        max_rows=2,
        max_tokens=8192,
        dtype="float32",
    )


@pytest.fixture
def set_room(monkeypatch: pytest.MonkeyPatch) -> SetRoom:
    """Let the machine have so many bytes for this process, those that it holds included."""

    def set_room(room: int) -> None:
        monkeypatch.setattr(runtime, "resident_bytes", lambda _device: 0)
        memory = psutil.virtual_memory()._replace(available=room + RESERVE_BYTES)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    return set_room


@pytest.fixture
def model(spec: ServeSpec) -> Iterator[ChatModel]:
    base, tokenizer = load_base(spec.base, torch.float32, CPU), load_tokenizer(spec.base)
    generator = Generator(base, CPU, max_rows=spec.max_rows, max_tokens=spec.max_tokens)
    with PromptEncoder(tokenizer) as prompts:
        sizes = served_model(Path(spec.base.path), torch.float32, CPU)
        yield ChatModel(spec, base, tokenizer, prompts, generator, sizes)


def ask(model: ChatModel, key: int, adapter: str) -> None:
    messages = [{"role": "user", "content": "hello"}]
    model.submit(
        key, ChatRequest(messages=messages, settings=ChatSettings(max_tokens=8), adapter=adapter * 64)
    )


def test_the_formula_is_near_the_measured_memory(spec: ServeSpec, tmp_path: Path) -> None:
    with run_engine(spec, tmp_path) as engine:
        engine.answer("hello", "1" * 64, max_tokens=8)
        resident = psutil.Process(engine.process.pid).memory_info().rss
    sizes = served_model(Path(spec.base.path), torch.float32, CPU)
    # Of this tiny model nearly all is the libraries, which take 130 MB more with a larger one.
    assert resident < sizes.memory_bytes(spec.max_tokens, spec.max_rows) < resident + RESERVE_BYTES


def test_keys_and_values_take_what_the_formula_says(spec: ServeSpec, model: ChatModel) -> None:
    ask(model, 1, "")
    model.generator.step()
    cache, sizes = model.generator._cache, model.memory
    stored = sum(layer.nbytes for kept in (cache.keys, cache.values) for layer in kept.values())
    tokens = cache.slots * cache.capacity
    assert stored == sizes.layers * tokens * sizes.cached_width * sizes.dtype_bytes
    # The embeddings are the head's weights, and stored once.
    assert sizes.weights == sum(weights.numel() for weights in model.generator._base.parameters())


def test_a_model_that_does_not_fit_is_not_loaded(
    spec: ServeSpec, set_room: SetRoom, record: Recorder
) -> None:
    sizes = served_model(Path(spec.base.path), torch.float32, CPU)
    set_room(sizes.memory_bytes(1024, spec.max_rows) - 1)
    with pytest.raises(OutOfMemory, match="memory"):
        serve(spec, report=record, should_stop=lambda: "")
    assert not record, "it does not begin to load"


def test_little_memory_means_fewer_tokens_and_trainings_keep_theirs(
    spec: ServeSpec, set_room: SetRoom
) -> None:
    sizes = served_model(Path(spec.base.path), torch.float32, CPU)
    whole, half = (sizes.memory_bytes(tokens, spec.max_rows) for tokens in (8192, 4096))
    set_room(whole)
    assert fit_tokens(spec, sizes, CPU) == 8192
    assert fit_tokens(spec, sizes, CPU, promised=whole - half) == 4096


def test_an_adapter_that_does_not_fit_is_refused_and_others_answer_on(
    spec: ServeSpec, model: ChatModel, set_room: SetRoom
) -> None:
    ask(model, 1, "1")
    set_room(model.memory.memory_bytes(spec.max_tokens, spec.max_rows, model.weights["1" * 64]))
    with pytest.raises(Refusal) as refused:
        ask(model, 2, "2")
    assert refused.value.event.code == "busy"
    ask(model, 3, "1")
    while not model.generator.is_idle:
        assert {token.key for token in model.generator.step()} <= {1, 3}
    ask(model, 4, "2")
    assert model.generator.adapters == ["2" * 64], "one that nobody uses makes room"


def test_a_container_has_no_more_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "CGROUP", tmp_path)
    files = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 5\ninactive_file 200\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert runtime.available_bytes(CPU) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert runtime.available_bytes(CPU) > 10**6
