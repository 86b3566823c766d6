"""Lists of the API: pages, limits and cursors."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.api.pagination import cursor_after
from dashboard.models import Dataset, Project

LIST = "/api/v1/datasets"


@pytest.fixture
def rows(project: Project) -> list[int]:
    """Return the ids of 60 datasets, newest first."""
    made = [Dataset.objects.create(project=project, name=f"Set {number}").pk for number in range(60)]
    return made[::-1]


def test_page_has_fifty_rows_newest_first(api: Client, rows: list[int]) -> None:
    page = api.get(LIST).json()
    assert set(page) == {"data", "next"}
    assert [one["id"] for one in page["data"]] == rows[:50]


def test_cursor_leads_through_all_rows_once(api: Client, rows: list[int], project: Project) -> None:
    seen, cursor = [], ""
    while cursor is not None:
        page = api.get(f"{LIST}?limit=25{cursor and f'&cursor={cursor}'}").json()
        seen += [one["id"] for one in page["data"]]
        cursor = page["next"]
        Dataset.objects.create(project=project, name=f"Late {cursor}")
    assert seen == rows


def test_last_page_has_no_next(api: Client, rows: list[int]) -> None:
    assert api.get(f"{LIST}?limit=60").json()["next"] is None
    assert api.get(f"{LIST}?limit=200").json()["next"] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("project", "1"),
        *(("limit", value) for value in ("0", "201", "x", "")),
        *(("cursor", value) for value in ("x", "", "%00", "é", "YWZ0ZXI6eA", cursor_after(10**30))),
    ],
)
def test_invalid_parameter_is_refused(api: Client, name: str, value: str) -> None:
    answer = api.get(f"{LIST}?{name}={value}")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, name)
