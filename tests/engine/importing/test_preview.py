"""Renders the first rows, measures their tokens and bounds what a chat template may take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine.importing.uploads import ROWS, Importer, lines
from tests.tiny_model import build_tiny_model
from workers.contract.errors import ModelError


def test_preview_shows_text_and_learned_segments(load: Importer) -> None:
    values = load(lines(*ROWS))
    preview = json.loads((load.out / "preview.json").read_text())
    assert len(preview) == 20
    assert preview[0]["row"] == 1
    assert preview[0]["text"].startswith("<|im_start|>user\nColour of 0?<|im_end|>")
    learned = [segment["text"] for segment in preview[0]["segments"] if segment["learned"]]
    assert learned == ["shade 0<|im_end|>"]
    assert values["token_lengths"]["max"] >= preview[0]["tokens"]
    assert sum(values["token_lengths"]["histogram"]["rows"]) == 40


def test_report_has_token_lengths_and_answer_ends(load: Importer) -> None:
    lengths = load(lines(*ROWS))["token_lengths"]
    preview = json.loads((load.out / "preview.json").read_text())
    assert len(lengths["quantiles"]) == len(lengths["answer_ends"]) == 101
    assert lengths["quantiles"][-1] == lengths["max"]
    # The template writes a line break after the end mark, which nobody learns.
    assert lengths["answer_ends"][-1] == lengths["max"] - 1
    assert lengths["learned_mean"] == pytest.approx(
        sum(row["learned_tokens"] for row in preview) / 20, rel=0.2
    )


def test_report_counts_the_shared_prefix(load: Importer) -> None:
    alike = [{"prompt": f"Name the colour of number {i}", "completion": f"shade {i}"} for i in range(40)]
    together = load(lines(*alike))["token_lengths"]["shared_prefix"]
    alike[7]["prompt"] = "Another question"
    assert 0 < load(lines(*alike))["token_lengths"]["shared_prefix"] < together


def test_endless_template_is_stopped(load: Importer, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "slow")
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    with pytest.raises(ModelError, match="needs more than 2 s"):
        load(lines(*ROWS), tokenizer=str(folder))


def test_template_memory_is_bounded(load: Importer, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "greedy")
    (folder / "chat_template.jinja").write_text("{{ 'x' * 3000000000 }}")
    with pytest.raises(ModelError, match="512 MB"):
        load(lines(*ROWS), tokenizer=str(folder))


def test_large_template_is_refused(load: Importer, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "long")
    (folder / "chat_template.jinja").write_text("{# " + "x" * 70_000 + " #}")
    with pytest.raises(ModelError, match="limit is 64 kB"):
        load(lines(*ROWS), tokenizer=str(folder))


def test_template_cannot_reach_python_objects(load: Importer, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "evil")
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    values = load(lines(*ROWS), tokenizer=str(folder))
    assert values["token_lengths"] == {"rows": 0}
    assert "does not fit the base model's chat template" in values["warnings"][0]
