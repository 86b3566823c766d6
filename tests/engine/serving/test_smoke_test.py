"""The smoke test of Transformers and PEFT, run on the answers of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engine.conftest import Recorder
from tests.tiny_model import build_tiny_model, colour_rows, tiny_base, write_canonical
from workers.contract.loading_code import loading_code
from workers.contract.specs import EvalSpec
from workers.engine.evaluation.evaluate import evaluate
from workers.serving.smoke_test import Question, peft_program


def save_adapter(base: Path, folder: Path, *, changes: bool) -> str:
    """Save a random adapter, or one that changes nothing."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=64, target_modules=["o_proj"], init_lora_weights=not changes)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("chat_template", [True, False])
def test_the_program_tells_an_adapter_from_the_base_model(tmp_path: Path, *, chat_template: bool) -> None:
    base = build_tiny_model(tmp_path / "base", chat_template=chat_template)
    adapter = save_adapter(base, tmp_path / "adapter", changes=True)
    data = write_canonical(tmp_path / "data", colour_rows(4))
    spec = EvalSpec(base=tiny_base(base), data=data, adapters={"adapter": adapter}, dtype="float32")
    evaluate(spec, tmp_path / "out", report=Recorder())
    items = [json.loads(line) for line in (tmp_path / "out/items.jsonl").read_text().splitlines()]
    own, other = next(pair for pair in zip(items[:4], items[4:], strict=True) if differ(*pair))
    question = Question(own["system"], own["prompt"], own["output"], other["output"])
    exec(peft_program(question, loading_code(str(base), "", adapter)), {})  # noqa: S102
    idle = save_adapter(base, tmp_path / "idle", changes=False)
    with pytest.raises(SystemExit, match="The adapter is not applied"):
        exec(peft_program(question, loading_code(str(base), "", idle)), {})  # noqa: S102


def differ(own: dict[str, str], other: dict[str, str]) -> bool:
    return own["output"] != other["output"]
