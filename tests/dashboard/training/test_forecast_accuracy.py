"""Predicted and measured side by side on a run's page."""

from __future__ import annotations

from django.test import Client

from dashboard.models import MetricSeries, TrainingRun, User
from dashboard.presenters.forecast_accuracy import compare_forecast

FORECAST = {
    "trainable_parameters": 512,
    "adapter_bytes": 4096,
    "peak_memory_bytes": {"expected": 1_000_000_000, "low": 900_000_000, "high": 1_200_000_000},
    "seconds": {"expected": 120.0, "low": 60.0, "high": 300.0},
    "rows_cut": 0,
    "starts_at": None,
}
MEASURED = {
    "trainable_parameters": 512,
    "adapter_bytes": 4096,
    "peak_memory_bytes": 1_100_000_000,
    "wall_seconds": 90.0,
}


def ended(run: TrainingRun, forecast: dict[str, object], measured: dict[str, object]) -> TrainingRun:
    TrainingRun.objects.update(forecast=forecast, measured=measured, outcome="succeeded")
    return TrainingRun.objects.get(pk=run.pk)


def test_relative_errors_of_the_forecast(run: TrainingRun) -> None:
    found = {line.label: line for line in compare_forecast(ended(run, FORECAST, MEASURED))}
    assert found["Peak memory"].off == "+10.0 %"
    assert found["Peak memory"].range == "900.0 MB to 1.2 GB"
    assert (found["Time"].predicted, found["Time"].measured, found["Time"].off) == (
        "2 min", "1 min 30 s", "-25.0 %",
    )  # fmt: skip
    assert found["Adapter"].off == found["Trainable parameters"].off == "exact"


def test_page_shows_forecast_and_measured_values(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    ended(run, FORECAST, MEASURED)
    page = client.get(run.get_absolute_url()).content.decode()
    assert "Predicted and measured" in page
    assert "1.1 GB" in page


def test_unmeasured_run_has_no_comparison(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    assert compare_forecast(run) == []
    assert "Predicted and measured" not in client.get(run.get_absolute_url()).content.decode()


def test_page_says_on_how_many_rows_it_was_validated(client: Client, vera: User, run: TrainingRun) -> None:
    ended(run, {}, {"validation_rows": 40})
    client.force_login(vera)
    MetricSeries.objects.append(run, "validation/loss", [(0, 1.0)])
    assert "Validated on 40 rows, once." in client.get(run.get_absolute_url()).content.decode()
    MetricSeries.objects.append(run, "validation/loss", [(5, 1.0), (10, 1.0)])
    assert "Validated on 40 rows, 3 times." in client.get(run.get_absolute_url()).content.decode()
