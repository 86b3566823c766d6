"""Encodes long chats turn by turn, with the tokens and targets of rendering every beginning of the chat."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests.tiny_model import CHATML, build_tiny_model, chat, tiny_base
from workers.engine.base_models.model import load_tokenizer
from workers.engine.training import chat_templates, encoding
from workers.engine.training.encoding import CanonicalRow, Example, encode

PROMPT = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
TEMPLATES = {
    "chatml": CHATML,
    "default system message": "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>Be kind.<|im_end|>' }}{% endif %}" + CHATML,
    "trimmed": CHATML.replace("message['content']", "message['content'] | trim"),
    "system in the first question": "{% set start, rest = '', messages %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set start, rest = messages[0]['content'], messages[1:] %}{% endif %}"
    "{% for m in rest %}"
    "{{ '<|im_start|>' + m['role'] + ':' + (start if loop.first else '') + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}",
    "no special tokens": "{% for m in messages %}"
    "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}" + PROMPT,
    "numbered turns": "{% for m in messages %}"
    "{{ loop.index ~ m['role'] ~ ':' ~ m['content'] ~ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ (messages | length + 1) ~ 'assistant:' }}{% endif %}",
    "shortens earlier answers": "{% for m in messages %}{{ m['role'] + ':' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ '...' }}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}" + PROMPT,
    "end only at the last": "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"
    "{% if not add_generation_prompt %}{{ '<|im_end|>' }}{% endif %}" + PROMPT,
}
WORDS = (
    "red",
    " blue",
    "\n",
    "  ",
    "<|im_end|>",
    "été",
    "a.\n\nb",
    "?",
    "😀",
    "assistant:",
    "<|im_start|>user\n",
    ".",
)


def random_chat(draw: random.Random) -> list[dict[str, Any]]:
    """Return a chat of 2 to 24 messages: odd words, weights, answers in a row, questions at the end."""
    messages = [{"role": "system", "content": "Be brief."}] if draw.random() < 0.3 else []
    for place in range(draw.randrange(2, 24)):
        role = ("user", "assistant")[place % 2] if draw.random() < 0.9 else draw.choice(("user", "assistant"))
        content = "".join(draw.choices(WORDS, k=draw.randrange(1, 9))) or "x"
        messages.append({"role": role, "content": content})
        if role == "assistant" and draw.random() < 0.2:
            messages[-1]["weight"] = 0
    return messages


@pytest.fixture(scope="module", params=["bundled", *TEMPLATES])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "bundled":
        return load_tokenizer(tiny_base(settings.BUNDLED_MODEL_DIR))
    loaded = load_tokenizer(tiny_base(build_tiny_model(tmp_path_factory.mktemp("m") / "tiny")))
    loaded.chat_template = TEMPLATES[request.param]
    return loaded


def as_values(example: Example) -> tuple[Any, ...]:
    flags = example.loss_mask.tolist()
    return example.ids.tolist(), flags, example.prompt_length, example.template_is_stable


@pytest.mark.parametrize("chats", [20, pytest.param(200, marks=pytest.mark.proof)])
def test_turns_give_the_targets_of_whole_beginnings(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, chats: int
) -> None:
    draw = random.Random(7)
    rows = [CanonicalRow(number, random_chat(draw), None) for number in range(chats)]
    monkeypatch.setattr(chat_templates, "SHORT_CHARACTERS", 10**9)
    expected = encode(tokenizer, rows)
    monkeypatch.setattr(chat_templates, "SHORT_CHARACTERS", 0)
    for example, row, old in zip(encode(tokenizer, rows), rows, expected, strict=True):
        assert as_values(example) == as_values(old), row.messages


@pytest.mark.parametrize("turns", [200, 400])
def test_work_grows_with_the_length_of_a_chat(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    tokenizer = load_tokenizer(tiny_base(build_tiny_model(tmp_path_factory.mktemp("m") / "tiny")))
    monkeypatch.setattr(chat_templates, "SHORT_CHARACTERS", 0)
    rendered: list[str] = []
    tokenized: list[str] = []
    render, tokenize = chat_templates.ChatTemplate.render, encoding.TokenRules.tokenize

    def count_rendered(self: Any, chats: list[list[Any]], **options: Any) -> list[str]:
        texts = render(self, chats, **options)
        rendered.extend(texts)
        return texts

    def count_tokenized(self: Any, texts: list[str]) -> Any:
        tokenized.extend(texts)
        return tokenize(self, texts)

    monkeypatch.setattr(chat_templates.ChatTemplate, "render", count_rendered)
    monkeypatch.setattr(encoding.TokenRules, "tokenize", count_tokenized)
    messages = [message for turn in range(turns) for message in chat(f"Question {turn}?", f"answer {turn}")]
    chat_templates.render_chat(tokenizer, messages)
    example = encode(tokenizer, [CanonicalRow(1, messages, None)])[0]
    length = len(tokenizer.apply_chat_template(messages, tokenize=False))
    assert example.target_count > 8 * turns
    assert sum(map(len, rendered)) < 10 * length
    assert sum(map(len, tokenized)) < 10 * length


def test_a_long_chat_of_dependent_turns_learns_its_last_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_base(build_tiny_model(tmp_path / "tiny")))
    tokenizer.chat_template = TEMPLATES["numbered turns"]
    monkeypatch.setattr(chat_templates, "MAX_CHARACTERS", 0)
    monkeypatch.setattr(chat_templates, "SHORT_CHARACTERS", 0)
    messages = [*chat("a", "first"), *chat("b", "second"), *chat("c", "third")]
    example = encode(tokenizer, [CanonicalRow(1, messages, None)])[0]
    assert tokenizer.decode(example.ids[example.loss_mask].tolist()) == "third<|im_end|>"
    assert not example.template_is_stable
