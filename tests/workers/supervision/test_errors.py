"""Advice after a failure fits the action that the page offers."""

from __future__ import annotations

import pytest

from workers.contract.errors import (
    ADVICE,
    ADVICE_FOR_ACTION,
    IMPORT,
    INSPECT,
    REEVALUATE,
    RESUME,
    START,
    advice,
)

ACTIONS = (START, RESUME, REEVALUATE, IMPORT, INSPECT)


@pytest.mark.parametrize("action", ACTIONS)
def test_advice_is_whole_sentences(action: str) -> None:
    for code in ADVICE:
        text = advice(code, action)
        assert text[0].isupper()
        assert text.endswith(".")
        assert not set("{}") & set(text)


@pytest.mark.parametrize("code", ["disk_full", "worker_lost", "publish_failed"])
def test_advice_ends_with_the_offered_action(code: str) -> None:
    for action in (START, RESUME, REEVALUATE):
        assert advice(code, action).endswith(f" {action}.")


def test_advice_for_an_action_has_a_known_code_and_action() -> None:
    assert {code for code, _action in ADVICE_FOR_ACTION} <= set(ADVICE)
    assert {action for _code, action in ADVICE_FOR_ACTION} <= set(ACTIONS)


def test_only_a_training_is_advised_to_change_its_batch_size() -> None:
    assert [
        "batch" in advice("out_of_memory", action) for action in (START, REEVALUATE, IMPORT, INSPECT)
    ] == [
        True,
        False,
        False,
        False,
    ]


def test_unknown_code_has_no_advice() -> None:
    assert advice("no_such_code") == ""
