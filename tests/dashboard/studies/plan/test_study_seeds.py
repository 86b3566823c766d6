"""Adding seeds to a study."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, Project, Study, User
from dashboard.models.studies.added_seeds import add_seeds
from tests.dashboard.studies.factories import conclude, make_study

ONES = {seed: [1] for seed in (1, 2, 3, 4)}
TABLE: Any = {"base": {0: [1]}, "efficient": ONES, "quality": ONES}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Finished, with two seeds."""
    return conclude(make_study(project, dataset, base_model, by=ed, seeds=[1, 2]), TABLE)


def send(client: Client, study: Study, **values: Any) -> Any:
    return client.post(
        reverse("study-seeds", args=[study.pk]), {"count": 2, "first": 3, **values}, follow=True
    )


def test_every_arm_trains_with_the_new_seeds(client: Client, ed: User, study: Study) -> None:
    before = study.runs().count()
    client.force_login(ed)
    send(client, study)
    study.refresh_from_db()
    assert study.seeds == [1, 2, 3, 4]
    assert study.runs().count() == before + 2, "seed 4 waits for the look after seed 3"
    assert study.state == "queued" or study.state == "running"


def test_double_click_adds_seeds_once(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    send(client, study)
    page = send(client, study).content.decode()
    assert "notice-error" not in page.split('id="notices"')[0]
    study.refresh_from_db()
    assert study.seeds == [1, 2, 3, 4]


@pytest.mark.parametrize("count", ["0", "6", "many"])
def test_other_numbers_of_seeds_are_refused(client: Client, ed: User, study: Study, count: str) -> None:
    client.force_login(ed)
    assert "from 1 to 5" in send(client, study, count=count).content.decode()
    study.refresh_from_db()
    assert study.seeds == [1, 2]


def test_report_names_added_seeds(client: Client, ed: User, study: Study) -> None:
    add_seeds(study, [3], ed)
    study = conclude(Study.objects.get(pk=study.pk), TABLE)
    client.force_login(ed)
    page = client.get(reverse("study-report", args=[study.pk])).content.decode()
    assert "after a first result: 3." in page


def test_concurrent_additions_are_both_kept(ed: User, study: Study) -> None:
    first, second = (Study.objects.get(pk=study.pk) for _copy in range(2))
    add_seeds(first, [3], ed)
    add_seeds(second, [4], ed)
    study = Study.objects.get(pk=study.pk)
    assert study.seeds == [1, 2, 3, 4]
    assert [addition["seeds"] for addition in study.additions] == [[3], [4]]
    assert conclude(study, TABLE).runs().count() == 8


def test_advancing_a_stale_copy_keeps_added_seeds(ed: User, study: Study) -> None:
    stale = Study.objects.with_facts().get(pk=study.pk)
    add_seeds(study, [3], ed)
    stale.advance()
    saved = Study.objects.get(pk=study.pk)
    assert (saved.seeds, saved.finished_at) == ([1, 2, 3], None)
    assert saved.forecast_seconds == study.forecast_seconds
