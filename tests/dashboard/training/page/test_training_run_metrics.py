"""The curves as JSON for pages that poll, and as CSV."""

from __future__ import annotations

import csv
import io

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import MetricSeries, TrainingRun, User


def facts(client: Client, run: TrainingRun, since: str = "") -> dict[str, object]:
    answer = client.get(reverse("training-run-metrics", args=[run.pk]), {"since": since})
    return dict(answer.json())


def test_it_returns_all_points_and_then_new_ones(client: Client, vera: User, run: TrainingRun) -> None:
    MetricSeries.objects.append(run, "train/loss", [(1, 3.0), (2, 2.0)])
    client.force_login(vera)
    first = facts(client, run)
    MetricSeries.objects.append(run, "train/loss", [(3, 1.0)])
    second = facts(client, run, str(first["cursor"]))
    assert first["curves"] == {"train/loss": [[1, 3.0], [2, 2.0]], "validation/loss": []}
    assert second["curves"] == {"train/loss": [[3, 1.0]], "validation/loss": []}
    assert (second["replace"], second["state"], second["over"]) == (False, "queued", False)


def test_numbers_of_a_picture_are_short(client: Client, vera: User, run: TrainingRun) -> None:
    MetricSeries.objects.append(run, "train/loss", [(1, 1 / 3), (2, 20 / 3)])
    client.force_login(vera)
    assert b'"train/loss":[[1,0.333333],[2,6.66667]]' in client.get(f"/runs/{run.pk}/metrics/").content


@pytest.mark.parametrize("since", ["x", "-1.-1.-1", "9" * 99])
def test_an_invalid_cursor_returns_all_points(
    client: Client, vera: User, run: TrainingRun, since: str
) -> None:
    MetricSeries.objects.append(run, "train/loss", [(1, 3.0)])
    client.force_login(vera)
    assert facts(client, run, since)["replace"] is True


def test_the_csv_has_every_point(client: Client, vera: User, run: TrainingRun) -> None:
    MetricSeries.objects.append(run, "train/loss", [(step, 1.5) for step in range(1, 2001)])
    MetricSeries.objects.append(run, "validation/loss", [(2000, 0.5)])
    client.force_login(vera)
    answer = client.get(reverse("training-run-metrics-csv", args=[run.pk]))
    rows = list(csv.reader(io.StringIO(answer.content.decode())))
    assert rows[0] == ["step", "train/loss", "validation/loss"]
    assert (len(rows), rows[1], rows[-1]) == (2001, ["1", "1.5", ""], ["2000", "1.5", "0.5"])
    assert "attachment" in answer["Content-Disposition"]
