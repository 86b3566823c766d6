"""What is said while the tables are older than the program; here something really is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.urls import reverse

from dashboard.models import User
from dashboard.models.health import findings

pytestmark = pytest.mark.django_db(transaction=True)
# What a later release would have added, and the migration that it would have come with.
COLUMN, MIGRATION = ("dashboard_workernode", "loads_4bit"), ("dashboard", "0001_initial")
SENTENCE = "The tables of the database are older than the program, so some pages fail: run manage.py migrate."


@pytest.fixture
def keeper(client: Client, mara: User) -> Client:
    """Mara's browser, which gets answers and no exceptions."""
    client.force_login(mara)
    client.raise_request_exception = False
    return client


@pytest.fixture
def not_migrated(transactional_db: None) -> Iterator[None]:
    """The program was updated without `migrate`: a column and the note of its migration are missing."""
    table, column = COLUMN
    alter(f"ALTER TABLE {table} RENAME COLUMN {column} TO taken_away")
    MigrationRecorder(connection).record_unapplied(*MIGRATION)
    yield
    migrated()


def migrated() -> None:
    """Do what `manage.py migrate` would do, unless it is done."""
    table, column = COLUMN
    if MIGRATION not in MigrationRecorder(connection).applied_migrations():
        alter(f"ALTER TABLE {table} RENAME COLUMN taken_away TO {column}")
        MigrationRecorder(connection).record_applied(*MIGRATION)


def alter(statement: str) -> None:
    """Change a table behind the back of the migrations."""
    with connection.cursor() as cursor:
        cursor.execute(statement)


def test_the_health_page_opens_and_says_what_to_do(keeper: Client, not_migrated: None) -> None:
    answer = keeper.get(reverse("health-index"))
    page = answer.content.decode()
    assert answer.status_code == 200
    assert "1 migration is missing: the tables are older than the program." in page
    assert "manage.py migrate" in page
    assert 'data-alarm="tables"' in page
    assert SENTENCE in page


def test_every_page_with_a_frame_says_it_and_shows_the_way(keeper: Client, not_migrated: None) -> None:
    answer = keeper.get(reverse("settings"))
    assert answer.status_code == 200
    assert SENTENCE in answer.content.decode()
    assert f'href="{reverse("health-index")}">How to mend it' in answer.content.decode()


def test_a_page_that_needs_what_is_missing_says_it_too(keeper: Client, not_migrated: None) -> None:
    answer = keeper.get(reverse("queue-index"))
    assert answer.status_code == 503
    assert SENTENCE in answer.content.decode()
    assert "cannot reach its database" not in answer.content.decode()
    assert b'http-equiv="refresh"' not in answer.content, "waiting alone does not help"


def test_a_call_is_told_as_well(client: Client, token: str, not_migrated: None) -> None:
    client.raise_request_exception = False
    answer = client.get("/api/v1/workers", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "tables_outdated")
    assert answer.json()["error"]["message"] == SENTENCE


def test_all_is_well_once_the_tables_are_up_to_date(keeper: Client, not_migrated: None) -> None:
    migrated()
    assert SENTENCE not in keeper.get(reverse("health-index")).content.decode()
    assert keeper.get(reverse("queue-index")).status_code == 200


def test_a_column_that_somebody_took_away_is_a_finding(keeper: Client) -> None:
    alter("ALTER TABLE dashboard_workernode RENAME COLUMN loads_4bit TO taken_away")
    try:
        assert keeper.get(reverse("health-index")).status_code == 200
        worst = findings()[0]
        assert (worst.check, worst.level) == ("tables", "problem")
        assert "a part of the tables is missing" in worst.text
        assert "loads_4bit" in worst.text
    finally:
        alter("ALTER TABLE dashboard_workernode RENAME COLUMN taken_away TO loads_4bit")


def test_a_missing_table_is_not_taken_for_a_database_that_is_away(keeper: Client) -> None:
    alter("ALTER TABLE dashboard_user RENAME TO taken_away")
    try:
        answer = keeper.get(reverse("health-index"))
    finally:
        alter("ALTER TABLE taken_away RENAME TO dashboard_user")
    assert answer.status_code == 503, "nobody can be let in"
    assert SENTENCE in answer.content.decode()
