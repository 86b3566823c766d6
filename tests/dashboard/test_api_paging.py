"""Lists of the API: pages, limits, cursors."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.api.paging import cursor_after
from dashboard.models import Dataset, Project

LIST = "/api/v1/datasets"


@pytest.fixture
def rows(project: Project) -> list[int]:
    """Ids of 60 datasets, newest first."""
    made = [Dataset.objects.create(project=project, name=f"Set {number}").pk for number in range(60)]
    return made[::-1]


def test_a_page_has_fifty_rows_newest_first(api: Client, rows: list[int]) -> None:
    page = api.get(LIST).json()
    assert set(page) == {"data", "next"}
    assert [one["id"] for one in page["data"]] == rows[:50]


def test_a_cursor_leads_through_all_rows_once(api: Client, rows: list[int], project: Project) -> None:
    seen, cursor = [], ""
    while cursor is not None:
        page = api.get(f"{LIST}?limit=25{cursor and f'&cursor={cursor}'}").json()
        seen += [one["id"] for one in page["data"]]
        cursor = page["next"]
        Dataset.objects.create(project=project, name=f"Late {cursor}")
    assert seen == rows


def test_the_last_full_page_has_no_next(api: Client, rows: list[int]) -> None:
    assert api.get(f"{LIST}?limit=60").json()["next"] is None
    assert api.get(f"{LIST}?limit=200").json()["next"] is None


@pytest.mark.parametrize("limit", ["0", "-1", "201", "x", "1.5", "", "9" * 30])
def test_it_refuses_a_limit_out_of_range(api: Client, limit: str) -> None:
    answer = api.get(f"{LIST}?limit={limit}")
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "limit"


@pytest.mark.parametrize("cursor", ["x", "", "%00", "5", "é", "YWZ0ZXI6eA", cursor_after(10**30), "a" * 5000])
def test_it_refuses_a_cursor_of_its_own_making(api: Client, cursor: str) -> None:
    answer = api.get(f"{LIST}?cursor={cursor}")
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "cursor"


def test_it_refuses_a_filter_that_it_does_not_have(api: Client) -> None:
    answer = api.get(f"{LIST}?project=1")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "project")
