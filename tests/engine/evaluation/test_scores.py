"""Scores of single answers, worked out by hand."""

from __future__ import annotations

import pytest

from workers.engine.evaluation.scores import answer_kind, field_f1, score_answer, token_f1


def test_token_f1_follows_squad() -> None:
    assert token_f1("The cat sat.", "a cat sat") == 1.0
    assert token_f1("cat dog", "cat bird fish") == pytest.approx(2 * 1 / (2 + 3))
    assert token_f1("", "cat") == 0.0
    assert token_f1("", "") == 1.0


def test_text_scores_of_a_near_miss() -> None:
    scores = score_answer(" web page ", "web site")
    assert scores["exact_match"] == scores["contains"] == 0.0
    assert scores["token_f1"] == scores["rouge_l"] == pytest.approx(0.5)
    assert 0.1 < scores["chrf"] < 0.8
    assert set(score_answer(" web\n", "web").values()) == {1.0}


def test_an_answer_inside_of_a_sentence_is_contained() -> None:
    assert score_answer("It belongs to  WEB pages.", "web")["contains"] == 1.0
    assert score_answer("anything", "")["contains"] == 0.0


def test_label_ignores_case_and_punctuation() -> None:
    scores = score_answer("Games.\nBecause it is a game.", "games", "label")
    assert (scores["accuracy"], scores["exact_match"]) == (1.0, 0.0)


def test_fields_of_json_count_one_by_one() -> None:
    expected = '{"team": "billing", "tags": ["a", "b"], "urgent": true}'
    assert field_f1('{"urgent": true, "tags": ["b", "a"], "team": "billing"}', expected) == 1.0
    # Of four expected fields three are there, and one of the four found is wrong.
    assert field_f1('{"team": "sales", "tags": ["a", "b"], "urgent": true}', expected) == 0.75
    assert field_f1('{"team": "billing"', expected) == 0.0
    assert field_f1("{}", "{}") == 1.0
    assert score_answer("no", expected, "json")["json_valid"] == 0.0
    assert score_answer("[1]", expected, "json")["json_valid"] == 1.0


def test_deeply_nested_json_is_invalid() -> None:
    assert field_f1("[" * 100_000, "[]") == 0.0


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["spam", "ham", "spam", "ham", "spam", "ham", "spam", "ham"], "label"),
        (['{"a": 1}', '{"a": 2}'], "json"),
        (["A long story.", "Another one.", "A third."], "text"),
        (["spam", "ham"], "text"),
        ([], "text"),
        (["1", "2", "1", "2", "1"], "label"),
    ],
)
def test_answer_kind(answers: list[str], kind: str) -> None:
    assert answer_kind(answers) == kind


def test_chosen_metric_is_always_scored() -> None:
    for metric in ("accuracy", "json_valid", "field_f1"):
        assert metric not in score_answer("a", "b")
        assert score_answer("a", "b", metric=metric)[metric] == 0.0


def test_regex_is_scored_if_a_pattern_is_given() -> None:
    assert "regex" not in score_answer("42", "42")
    assert score_answer("It is 42.", "42", pattern=r"(\d+)")["regex"] == 1.0
    assert score_answer("It is 43.", "42", pattern=r"(\d+)")["regex"] == 0.0
