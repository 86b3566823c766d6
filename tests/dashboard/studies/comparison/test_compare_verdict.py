"""The verdict of the Compare page: sentence, figures and single rows, chosen by the query."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, Project, TrainingRun, User
from tests.dashboard.studies.comparisons import rights, scored_runs

pytestmark = pytest.mark.django_db


@pytest.fixture
def runs(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> list[TrainingRun]:
    """Two arms of three seeds that lie far apart."""
    arms = {
        "Low": [rights(0.3, seed=seed) for seed in (1, 2, 3)],
        "High": [rights(0.9, seed=seed) for seed in (4, 5, 6)],
    }
    return scored_runs(project, dataset, base_model, ed, arms)


def query(runs: list[TrainingRun], more: str = "") -> str:
    return f"?runs={','.join(str(run.pk) for run in runs)}{more}"


def page(client: Client, user: User, runs: list[TrainingRun], more: str = "", route: str = "compare") -> str:
    client.force_login(user)
    response = client.get(reverse(route) + query(runs, more))
    assert response.status_code == 200
    return response.content.decode()


def rows_shown(text: str) -> list[int]:
    return [int(row) for row in re.findall(r'data-label="Row">(\d+)</td>', text)]


def test_page_shows_verdict_and_figures(client: Client, vera: User, runs: list[TrainingRun]) -> None:
    text = page(client, vera, runs)
    order = ["is better than Low", 'id="plot-intervals"', 'id="plot-pareto"', "Differences to Low"]
    order += ['id="settings"', 'id="curve-1"']
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "ChosenArm" not in text
    # Three arms' rows: two arms and the base model; three seeds each.
    assert text.count('class="plot-row') == 3
    assert text.count('class="plot-seed"') == 6


def test_query_sets_reference_and_metric(client: Client, vera: User, runs: list[TrainingRun]) -> None:
    text = page(client, vera, runs, f"&reference={runs[3].pk}&metric=loss")
    assert f"Low #{runs[0].pk} is worse than High #{runs[3].pk} by" in text
    assert "nats" in text
    assert f"Differences to High #{runs[3].pk}" in text


def test_forms_keep_the_other_choices(client: Client, vera: User, runs: list[TrainingRun]) -> None:
    query = "&metric=loss&show=differences&x=tokens&cost=seconds&evil=1"
    text = page(client, vera, runs, query) + page(client, vera, runs, query, "compare-items")
    for name, value in (("show", "differences"), ("x", "tokens"), ("cost", "seconds"), ("metric", "loss")):
        assert f'type="hidden" name="{name}" value="{value}"' in text, name
    assert 'name="evil"' not in text


@pytest.mark.parametrize("more", ["&metric=x&reference=x&cost=x&x=x&arm=x", "&page=-1", "&page=999"])
def test_malformed_choices_have_defaults(
    client: Client, vera: User, runs: list[TrainingRun], more: str
) -> None:
    for route in ("compare", "compare-items"):
        assert "High" in page(client, vera, runs, more, route)


def test_without_runs_or_scores_there_are_no_answers(
    client: Client, vera: User, runs: list[TrainingRun]
) -> None:
    client.force_login(vera)
    runs[1].evaluations.all().delete()
    for asked in ("", f"?runs={runs[1].pk}"):
        assert client.get(reverse("compare-items") + asked).status_code == 404


def test_rows_are_filtered_by_the_better_side(client: Client, vera: User, runs: list[TrainingRun]) -> None:
    low, high = (
        np.array([rights(share, seed=seed) for seed in seeds]).mean(axis=0)
        for share, seeds in ((0.3, (1, 2, 3)), (0.9, (4, 5, 6)))
    )
    worse = {int(row) for row in np.flatnonzero(low > high) + 1}
    text = page(client, vera, runs, "&won=losses", "compare-items")
    assert set(rows_shown(text)) == worse
    won, lost = int((high > low).sum()), len(worse)
    assert f"on {won} rows, worse on {lost}, the same on {60 - won - lost}" in text


def test_arm_is_shown_beside_the_base_model(client: Client, vera: User, runs: list[TrainingRun]) -> None:
    base = runs[-1].evaluations.get(subject="base")
    chosen = f"&arm={runs[0].pk}&beside=base-{base.pk}&sort=low&won=wins"
    text = page(client, vera, runs, chosen, "compare-items")
    means = np.array([rights(0.3, seed=seed) for seed in (1, 2, 3)]).mean(axis=0)
    won = [int(row) + 1 for row in np.argsort(means, kind="stable") if means[row] > 0]
    assert rows_shown(text) == won[:20]
    assert f"Low #{runs[0].pk} did better than Tiny on {len(won)} rows, worse on 0" in text
    text = page(client, vera, runs, chosen)
    for name, value in (("beside", f"base-{base.pk}"), ("sort", "low"), ("won", "wins")):
        assert f'type="hidden" name="{name}" value="{value}"' in text, name


def test_number_of_queries_does_not_grow_with_runs(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    counts = []
    for count in (2, 12):
        arms = {f"{count}-{place}": [rights(0.5, 8, seed=place)] for place in range(count)}
        runs = scored_runs(project, dataset, base_model, ed, arms)
        page(client, vera, runs)
        with CaptureQueriesContext(connection) as seen:
            page(client, vera, runs)
        counts.append(len(seen))
    assert counts[0] == counts[1]


def test_json_contains_every_score(client: Client, vera: User, runs: list[TrainingRun]) -> None:
    client.force_login(vera)
    found = json.loads(client.get(reverse("compare-json") + query(runs)).content)
    scores: dict[str, dict[int, list[float]]] = {}
    for one in found["scores"]:
        if one["seed"] is not None:
            scores.setdefault(one["arm"], {}).setdefault(one["seed"], []).append(one["value"])
    compared = found["comparisons"][0]
    arm, other = (np.array(list(scores[compared[side]].values())) for side in ("arm", "reference"))
    assert compared["difference"] == pytest.approx(float((arm - other).mean()))
    assert found["items"] == 60
    assert len(found["runs"]) == 6


def test_csv_contains_the_differences(client: Client, vera: User, runs: list[TrainingRun]) -> None:
    client.force_login(vera)
    text = client.get(reverse("compare-csv") + query(runs)).content.decode()
    assert f"{runs[3].pk},High #{runs[3].pk},against Low #{runs[0].pk},exact_match outcome,,better" in text
