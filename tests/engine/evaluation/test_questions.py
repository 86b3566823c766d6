"""Encodes the general questions and marks their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Recorder
from tests.engine.training.test_train import everything
from tests.tiny_model import build_tiny_model, chat, tiny_base, write_canonical
from workers.contract.errors import DataError
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import EvalSpec, TrainSpec
from workers.engine.base_models.model import load_tokenizer
from workers.engine.evaluation.evaluate import evaluate
from workers.engine.evaluation.questions import (
    CHOICES,
    QUESTIONS,
    SHA256,
    VERSION,
    encode_choices,
    mark_questions,
    read_questions,
)
from workers.engine.training.train import train

KNOWN = 6


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Any]:
    """Scores of a base that knows nothing and of an adapter that has learned the first questions."""
    folder = tmp_path_factory.mktemp("questions")
    rows = [chat(question, right) for question, right, *_wrong in read_questions()[:KNOWN]]
    learn = Hyperparameters(
        r=16, learning_rate=2e-2, max_steps=80, per_device_train_batch_size=6, lr_scheduler_type="linear"
    )
    base, data = tiny_base(tiny_folder), write_canonical(folder / "data", rows)
    spec = TrainSpec(
        name="t", base=base, data=data, target=everything(16), hyperparameters=learn, dtype="float32"
    )
    train([spec], folder / "out", report=Recorder())
    adapters = {"adapter": str(folder / "out/arm-0/adapter")}
    asked = EvalSpec(base=base, data=data, adapters=adapters, dtype="float32", max_rows=1)
    return evaluate(asked, folder / "scores", report=Recorder())


def test_question_file_matches_its_version() -> None:
    assert len(read_questions()) == 72, f"version {VERSION} has other questions: give the file a new version"
    assert len({question for question, *_answers in read_questions()}) == 72


def test_every_question_has_four_different_answers() -> None:
    for question, *answers in read_questions():
        assert len(set(answers)) == CHOICES, question
        assert max(map(len, answers)) <= 25, question


def test_changed_question_file_is_refused(tmp_path: Path) -> None:
    changed = tmp_path / QUESTIONS.name
    changed.write_bytes(QUESTIONS.read_bytes().replace(b"blue", b"pink"))
    with pytest.raises(DataError, match=r"general_questions\.json have changed"):
        read_questions(changed)


@pytest.mark.parametrize("chat_template", [True, False])
def test_only_answer_tokens_are_targets(tmp_path: Path, chat_template: bool) -> None:
    tokenizer = load_tokenizer(tiny_base(build_tiny_model(tmp_path / "m", chat_template=chat_template)))
    asked = encode_choices(tokenizer)
    (question, *answers), *_others = read_questions()
    assert len(asked) == CHOICES * 72
    for example, answer in zip(asked, answers, strict=False):
        assert tokenizer.decode(example.ids[example.loss_mask]).strip() == answer
        assert question in tokenizer.decode(example.ids)


def test_right_answer_needs_the_lowest_loss() -> None:
    one = {0: (1.0, 1), 1: (2.0, 1), 2: (3.0, 2), 3: (1.1, 1)}
    tie = {4: (1.0, 1), 5: (1.0, 1), 6: (3.0, 1), 7: (2.0, 1)}
    lost = {8: (2.0, 1), 9: (5.0, 1), 10: (1.9, 4), 11: (7.0, 1)}
    broken = {12: (float("nan"), 1), 13: (5.0, 1), 14: (1.9, 4), 15: (7.0, 1)}
    assert mark_questions(one | tie | lost | broken) == [1, 0, 0, 0]


def test_base_and_adapter_are_asked_the_same_questions(values: dict[str, Any]) -> None:
    told = values["general_questions"]
    assert (told["version"], told["sha256"], told["choices"]) == (VERSION, SHA256, CHOICES)
    assert set(told["marks"]) == {"base", "adapter"}
    for subject, found in told["marks"].items():
        assert len(found) == 72
        assert values[subject]["general_accuracy"] == pytest.approx(sum(found) / 72)


def test_learned_questions_are_answered_correctly(values: dict[str, Any]) -> None:
    found = values["general_questions"]["marks"]
    assert found["adapter"][:KNOWN] == [1] * KNOWN
    assert found["base"][:KNOWN] != [1] * KNOWN


def test_untrained_base_guesses(values: dict[str, Any]) -> None:
    assert 0.05 < values["base"]["general_accuracy"] < 0.5
