"""Answers while the tables are older than the program; the tests really remove a column or table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.urls import reverse

from dashboard.models import User
from dashboard.models.operations.health import run_health_checks

pytestmark = pytest.mark.django_db(transaction=True)
# A column that a later release would have added, and its migration.
COLUMN, MIGRATION = ("dashboard_workernode", "loads_4bit"), ("dashboard", "0001_initial")
SENTENCE = "The database tables are older than this version, so some pages fail. Run manage.py migrate."


@pytest.fixture
def browser(client: Client, mara: User) -> Client:
    """Return Mara's client, which gets responses instead of exceptions."""
    client.force_login(mara)
    client.raise_request_exception = False
    return client


@pytest.fixture
def not_migrated(transactional_db: None) -> Iterator[None]:
    """Simulate an update without `migrate`: a column and the record of its migration are missing."""
    table, column = COLUMN
    alter(f"ALTER TABLE {table} RENAME COLUMN {column} TO taken_away")
    MigrationRecorder(connection).record_unapplied(*MIGRATION)
    yield
    migrate()


def migrate() -> None:
    """Undo `not_migrated`, as `manage.py migrate` would."""
    table, column = COLUMN
    if MIGRATION not in MigrationRecorder(connection).applied_migrations():
        alter(f"ALTER TABLE {table} RENAME COLUMN taken_away TO {column}")
        MigrationRecorder(connection).record_applied(*MIGRATION)


def alter(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def test_health_page_opens_until_tables_are_migrated(browser: Client, not_migrated: None) -> None:
    page = browser.get(reverse("health-index")).content.decode()
    assert "manage.py migrate" in page
    assert 'data-alert="tables"' in page
    assert SENTENCE in page
    assert f'href="{reverse("health-index")}">How to fix it' in page
    migrate()
    assert SENTENCE not in browser.get(reverse("health-index")).content.decode()
    assert browser.get(reverse("queue-index")).status_code == 200


def test_page_that_reads_missing_column_answers_503(browser: Client, not_migrated: None) -> None:
    answer = browser.get(reverse("queue-index"))
    assert answer.status_code == 503
    assert SENTENCE in answer.content.decode()
    assert "cannot reach its database" not in answer.content.decode()
    assert b'http-equiv="refresh"' not in answer.content, "waiting alone does not help"


def test_api_answers_tables_outdated(client: Client, token: str, not_migrated: None) -> None:
    client.raise_request_exception = False
    answer = client.get("/api/v1/workers", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "tables_outdated")
    assert answer.json()["error"]["message"] == SENTENCE


def test_column_removed_by_hand_is_a_problem(browser: Client) -> None:
    alter("ALTER TABLE dashboard_workernode RENAME COLUMN loads_4bit TO taken_away")
    try:
        assert browser.get(reverse("health-index")).status_code == 200
        worst = run_health_checks()[0]
        assert (worst.code, worst.level) == ("tables", "problem")
        assert "loads_4bit" in worst.text
    finally:
        alter("ALTER TABLE dashboard_workernode RENAME COLUMN taken_away TO loads_4bit")


def test_missing_table_is_not_an_outage(browser: Client) -> None:
    alter("ALTER TABLE dashboard_user RENAME TO taken_away")
    try:
        answer = browser.get(reverse("health-index"))
    finally:
        alter("ALTER TABLE taken_away RENAME TO dashboard_user")
    assert answer.status_code == 503, "no user can be read"
    assert SENTENCE in answer.content.decode()
