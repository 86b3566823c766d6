"""The end of a run's log as plain text."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.test import Client
from django.urls import reverse

from dashboard.models import TrainingRun, User


def log_of(client: Client, run: TrainingRun, text: str | None) -> str:
    path = Path(settings.DATA_DIR) / "logs" / f"job-{run.job_id}.log"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    answer = client.get(reverse("training-run-log", args=[run.pk]))
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["X-Content-Type-Options"] == "nosniff"
    return answer.content.decode()


def test_it_shows_the_last_200_lines(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    shown = log_of(client, run, "\n".join(f"line {number}" for number in range(5000))).splitlines()
    assert (len(shown), shown[0], shown[-1]) == (200, "line 4800", "line 4999")


def test_it_is_empty_before_the_first_attempt(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    assert log_of(client, run, None) == ""


def test_it_replaces_invalid_bytes(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    assert "�" in log_of(client, run, "broken \udcff byte")


def test_it_truncates_a_long_line(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    assert len(log_of(client, run, "x" * 1_000_000)) <= 200 * 400
