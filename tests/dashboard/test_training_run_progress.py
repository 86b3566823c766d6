"""The live region of a run, alone."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import MetricSeries, TrainingRun, User


def test_it_is_a_piece_and_not_a_page(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    page = client.get(reverse("training-run-progress", args=[run.pk])).content
    assert b'data-state="queued"' in page
    assert b"<html" not in page


def test_it_has_a_short_form_for_lists(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    page = client.get(reverse("training-run-progress", args=[run.pk]), {"part": "cell"}).content
    assert b"Waiting" in page
    assert b"Training loss" not in page


def test_it_shows_the_last_values(client: Client, vera: User, run: TrainingRun) -> None:
    for name, value in (("train/tokens_per_second", 187.5), ("system/memory_bytes", 1.5e9)):
        MetricSeries.objects.append(run, name, [(1, value)])
    client.force_login(vera)
    page = client.get(reverse("training-run-progress", args=[run.pk])).content.decode()
    assert "188" in page
    assert "1.5 GB" in page


def test_it_hides_the_run_from_an_outsider(client: Client, otto: User, run: TrainingRun) -> None:
    client.force_login(otto)
    assert client.get(reverse("training-run-progress", args=[run.pk])).status_code == 404
