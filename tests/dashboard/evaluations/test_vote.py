"""Votes on single answers: blind, in random order, once per different answer, and changeable."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, EvaluationItem, Project, Study, TrainingRun, User, Vote
from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.judge_evaluation import evaluations_of
from tests.conftest import make_run
from tests.dashboard.conftest import publish
from tests.dashboard.evaluations.test_judge_evaluation import judge, judge_all, scored
from tests.dashboard.studies.comparisons import score

__all__ = ["judge", "scored"]


def address(scope: Study | TrainingRun) -> str:
    return reverse(f"{'study' if isinstance(scope, Study) else 'training-run'}-vote", args=[scope.pk])


def shown(client: Client, scope: Study | TrainingRun) -> tuple[int, str]:
    """Return the number of the item on the page, and the page."""
    text = client.get(address(scope)).content.decode()
    found = re.search(r'name="item"\s+value="(\d+)"', text)
    return (int(found[1]) if found else 0), text


def test_page_hides_the_origin_of_the_answer(client: Client, ed: User, scored: TrainingRun) -> None:
    judge_all(scored, ed)
    EvaluationItem.objects.update(system="Answer in one word.")
    client.force_login(ed)
    pk, text = shown(client, scored)
    item = EvaluationItem.objects.get(pk=pk)
    assert item.prompt in text
    assert "Answer in one word." in text
    assert item.expected in text
    body = text[text.index('aria-labelledby="answer"') :]
    assert "Base model" not in body
    assert scored.name not in re.sub(r"answer of \w+", "", body)
    assert "judged" not in body


def test_a_vote_is_stored_and_the_next_answer_follows(client: Client, ed: User, scored: TrainingRun) -> None:
    client.force_login(ed)
    pk, _text = shown(client, scored)
    answer = client.post(address(scored), {"item": pk, "verdict": "wrong"})
    assert answer.url == address(scored)  # type: ignore[attr-defined]
    vote = Vote.objects.get()
    assert (vote.item_id, vote.voter, vote.is_right) == (pk, ed, False)
    following, text = shown(client, scored)
    assert following != pk
    assert "You have voted on 1 answer." in text


def test_a_second_vote_replaces_the_first(client: Client, ed: User, scored: TrainingRun) -> None:
    client.force_login(ed)
    pk, _text = shown(client, scored)
    for verdict in ("wrong", "right"):
        client.post(address(scored), {"item": pk, "verdict": verdict})
    assert Vote.objects.get().is_right


def test_equal_answers_are_shown_once(client: Client, ed: User, scored: TrainingRun) -> None:
    client.force_login(ed)
    seen = []
    while True:
        pk, text = shown(client, scored)
        if not pk:
            break
        item = EvaluationItem.objects.get(pk=pk)
        seen.append((item.row, item.output))
        client.post(address(scored), {"item": pk, "verdict": "right"})
    assert len(seen) == len(set(seen)) == 10
    assert "No answers are left. You have voted on 10 different answers." in text


def test_different_answer_is_found_among_known_ones(
    ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    run = make_run(project, dataset, base_model, by=ed)
    score(publish(run), [0.0] * 60 + [1.0], base=[0.0] * 61)
    for item in evaluations_of(run).get(subject="base").items.all():
        Vote.objects.cast(ed, item, is_right=False)
    # 61 are left: 60 say what has been voted on, and one says something else.
    for _draw in range(20):
        item = Vote.objects.next_item(ed, evaluations_of(run))
        assert item
        assert (item.row, item.output) == (61, "yes")


def test_judged_answers_come_first(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    chosen = EvaluationItem.objects.filter(evaluation__in=evaluations_of(study)).first()
    assert chosen
    chosen.scores[JUDGE] = 1.0
    chosen.save()
    assert shown(client, study)[0] == chosen.pk


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"item": "1", "verdict": "perhaps"},
        {"item": "9" * 40, "verdict": "right"},
    ],
)
def test_a_malformed_vote_changes_nothing(
    client: Client, ed: User, scored: TrainingRun, body: dict[str, str]
) -> None:
    client.force_login(ed)
    assert client.post(address(scored), body).status_code == 302
    assert not Vote.objects.exists()


def test_an_answer_of_another_scope_is_not_found(
    client: Client, ed: User, scored: TrainingRun, study: Study
) -> None:
    client.force_login(ed)
    foreign = EvaluationItem.objects.filter(evaluation__in=evaluations_of(study)).first()
    assert foreign
    answer = client.post(address(scored), {"item": foreign.pk, "verdict": "right"})
    assert answer.status_code == 404


def test_agreement_of_majorities_with_the_judge(
    ed: User, mara: User, vera: User, scored: TrainingRun
) -> None:
    judge_all(scored, ed)
    items = list(evaluations_of(scored).get(subject="adapter").items.all())
    assert [item.scores[JUDGE] for item in items] == [1, 1, 1, 1, 0, 0]
    votes = {
        0: (True, True, False),  # people: right, as the judge
        1: (True, False, None),  # even: does not count
        4: (True, True, None),  # people: right, the judge: wrong
        5: (False, None, None),
    }
    for place, of_item in votes.items():
        for voter, is_right in zip((ed, mara, vera), of_item, strict=True):
            if is_right is not None:
                Vote.objects.cast(voter, items[place], is_right=is_right)
    found = Vote.objects.agreement(evaluations_of(scored))
    assert found
    assert (found.items, found.share) == (3, pytest.approx(2 / 3))


def test_equal_answers_of_several_arms_count_once(ed: User, study: Study, project: Project) -> None:
    judge_all(study, ed)
    for item in EvaluationItem.objects.filter(evaluation__in=evaluations_of(study), row=1):
        Vote.objects.cast(ed, item, is_right=False)
    found = Vote.objects.agreement(evaluations_of(study))
    assert found
    assert found.items == 1
