"""The time of a token on every kind of layer that carries an adapter; the base comes out as it went in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.modules.module import register_module_forward_hook
from transformers import GPT2Config, GPT2LMHeadModel

from tests.engine.conftest import Recorder
from tests.engine.training.test_target_training import MakeSpec, counted, folders
from tests.tiny_model import tiny_base
from workers.contract.errors import Stopped
from workers.contract.events import Progress, never_stop
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import BaseSpec
from workers.engine.base_models.model import load_base
from workers.engine.evaluation import latency
from workers.engine.evaluation.latency import ms_per_token
from workers.engine.training.data import Ids
from workers.engine.training.train import train
from workers.target_modules.presets import PRESETS, resolve
from workers.target_modules.resolution import target_spec

__all__ = ["folders"]
CPU = torch.device("cpu")


def prompt(length: int = 20) -> Ids:
    return torch.arange(3, 3 + length, dtype=torch.int32).numpy()


@pytest.mark.parametrize(
    ("model_type", "slug"),
    [
        ("llama", "quality"),
        ("gpt2", "efficient"),
        ("mixtral", "quality"),
        ("gpt_oss", "balanced"),
        ("llava", "query_value"),
    ],
)
def test_every_kind_of_adapter_layer_is_timed_and_removed(
    folders: Callable[[str], Path],
    make_spec: MakeSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    slug: str,
) -> None:
    folder = folders(model_type)
    learn = Hyperparameters(r=4)
    target = target_spec(resolve(PRESETS[slug].roles, counted(folder)), learn)
    train([make_spec(base=tiny_base(folder), target=target, max_steps=2)], tmp_path, report=Recorder())
    base = load_base(tiny_base(folder), torch.float32, CPU)
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        before = base(input_ids=ids).logits
    carried: list[bool] = []
    turn = latency._measure

    def watched(*arguments: Any) -> list[float]:
        ran: set[bool] = set()
        with register_module_forward_hook(lambda module, *_rest: ran.add(isinstance(module, BaseTunerLayer))):
            seconds = turn(*arguments)
        carried.append(True in ran)
        return seconds

    monkeypatch.setattr(latency, "_measure", watched)
    record = Recorder()
    found = ms_per_token(
        base,
        ["arm"],
        lambda name: PeftModel.from_pretrained(base, tmp_path / "arm-0/adapter", name).eval(),
        prompt(),
        device=CPU,
        report=record,
        should_stop=never_stop,
    )
    assert found["base"] > 0
    assert found["arm"] > 0
    assert carried == [False, True, True, False], "the adapter worked in its own turns and in no other"
    assert record.of(Progress) == [Progress("timing", done, 4) for done in range(5)]
    with torch.no_grad():
        assert torch.equal(base(input_ids=ids).logits, before)


def test_end_token_does_not_shorten_the_measurement(base: BaseSpec) -> None:
    model = load_base(base, torch.float32, CPU)
    with torch.no_grad():
        first = int(model(input_ids=torch.as_tensor(prompt())[None].long()).logits[0, -1].argmax())
    # A model that would end at once.
    model.generation_config.eos_token_id = first
    seconds = latency._measure(model, prompt(), CPU, never_stop)
    assert len(seconds) == latency.TOKENS - latency.WARM_UP - 1


def test_long_prompt_is_cut(base: BaseSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_base(base, torch.float32, CPU)
    seen: list[int] = []
    real = model.generate

    def generate(**keywords: Any) -> Any:
        seen.append(keywords["input_ids"].shape[1])
        return real(**keywords)

    monkeypatch.setattr(model, "generate", generate)
    latency._measure(model, prompt(400), CPU, never_stop)
    assert seen == [latency.MAX_PROMPT_TOKENS]


def test_a_model_with_few_positions_keeps_room_for_the_answer() -> None:
    few = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=latency.TOKENS + 16)
    seconds = latency._measure(GPT2LMHeadModel(few), prompt(30), CPU, never_stop)
    assert len(seconds) == latency.TOKENS - latency.WARM_UP - 1


def test_it_obeys_a_stop_between_two_tokens(base: BaseSpec) -> None:
    asked: list[int] = []

    def should_stop() -> str:
        asked.append(1)
        return "cancel" if len(asked) > 3 else ""

    with pytest.raises(Stopped):
        latency._measure(load_base(base, torch.float32, CPU), prompt(), CPU, should_stop)
    assert len(asked) < latency.TOKENS
