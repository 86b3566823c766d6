"""The page of a study."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from dashboard.models import BaseModel, Dataset, Project, Study, User
from dashboard.models.studies.results.verdict_sentence import verdict_sentence
from tests.dashboard.studies.factories import Table, conclude, make_study

SEEDS = (1, 2, 3)
ALIKE: Table = {
    "base": {0: [0, 1]},
    "efficient": {seed: [1, 1] for seed in SEEDS},
    "quality": {seed: [1, 1] for seed in SEEDS},
}
UNSURE: Table = {
    "base": {0: [0] * 40},
    "efficient": {seed: [(row + seed) % 2 for row in range(40)] for seed in SEEDS},
    "quality": {seed: [1] * 20 + [0] * 20 for seed in SEEDS},
}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Queued: two arms, three seeds."""
    return make_study(project, dataset, base_model, by=ed)


def test_page_shows_the_plan(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    for words in ("Exact match", "quality", "2 points", "Equal rank", "not searched"):
        assert words in page


def test_finished_study_shows_the_verdict_first(client: Client, vera: User, study: Study) -> None:
    conclude(study, ALIKE)
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    assert page.index("study-verdict") < page.index("study-grid")
    assert "hx-trigger" not in page.split('id="study-grid"')[1].split(">")[0]


def test_page_offers_the_advised_number_of_seeds(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    few = make_study(project, dataset, base_model, by=ed, seeds=[1])
    conclude(
        few, {name: {seed: values[seed] for seed in values if seed < 2} for name, values in UNSURE.items()}
    )
    client.force_login(ed)
    page = client.get(few.get_absolute_url()).content.decode()
    assert "Indicative only" in page
    assert "Add 2 seeds" in page


def test_verdict_with_one_seed_is_indicative(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    arms = ("efficient", "mlp", "quality")
    few = make_study(project, dataset, base_model, slugs=arms, seeds=[1])
    scores = {"efficient": [1, 0, 0, 0], "mlp": [1, 1, 0, 0], "quality": [1, 1, 1, 0], "base": [0, 0, 0, 0]}
    said = verdict_sentence(conclude(few, {name: {1: values} for name, values in scores.items()}))
    assert said == (
        "Indicative only, with 1 seed: of the other arms mlp comes out first, 25 points behind quality. "
        "Three seeds are needed for a verdict."
    )


@pytest.mark.parametrize(("score", "where"), [(1, "25 points ahead of"), (0, "level with")])
def test_indicative_verdict_on_two_arms(
    project: Project, dataset: Dataset, base_model: BaseModel, score: int, where: str
) -> None:
    scores = {"efficient": [1, 0, 0, score], "quality": [1, 0, 0, 0], "base": [0, 0, 0, 0]}
    few = make_study(project, dataset, base_model, seeds=[1])
    said = verdict_sentence(conclude(few, {name: {1: values} for name, values in scores.items()}))
    assert f"with 1 seed: efficient comes out {where} quality." in said


def test_number_of_queries_does_not_grow_with_arms(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(vera)
    counts = []
    for slugs in (("efficient", "quality"), ("efficient", "balanced", "attention", "mlp", "quality")):
        study = make_study(project, dataset, base_model, slugs=slugs)
        with CaptureQueriesContext(connection) as asked:
            client.get(study.get_absolute_url())
        counts.append(len(asked))
    assert counts[0] == counts[1]
