"""What people are advised to do about a failure: words that fit the buttons beside them."""

from __future__ import annotations

import pytest

from workers.contract.errors import ADVICE, ADVICE_TO, IMPORT, INSPECT, RESUME, SCORE, START, advice


@pytest.mark.parametrize("then", [START, RESUME, SCORE, IMPORT, INSPECT])
@pytest.mark.parametrize("code", sorted(ADVICE))
def test_every_advice_is_whole_sentences_whatever_follows(code: str, then: str) -> None:
    found = advice(code, then)
    assert found[0].isupper()
    assert found.endswith(".")
    assert not set("{}") & set(found)


@pytest.mark.parametrize("code", ["disk_full", "worker_lost", "publish_failed"])
def test_what_can_be_resumed_is_not_started_again(code: str) -> None:
    assert advice(code).endswith("start again.")
    assert advice(code, RESUME).endswith(" resume.")
    assert advice(code, SCORE).endswith(" re-evaluate it.")


def test_every_other_ending_belongs_to_a_known_failure() -> None:
    assert {code for code, _then in ADVICE_TO} <= set(ADVICE)
    assert {then for _code, then in ADVICE_TO} <= {RESUME, SCORE, IMPORT, INSPECT}


def test_only_a_training_without_memory_is_advised_about_its_batches() -> None:
    assert "batch" in advice("out_of_memory", START)
    for then in (SCORE, IMPORT, INSPECT):
        assert "batch" not in advice("out_of_memory", then)


def test_of_an_unknown_failure_nothing_is_said() -> None:
    assert advice("no_such_code") == ""
