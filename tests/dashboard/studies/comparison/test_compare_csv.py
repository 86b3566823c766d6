"""The CSV of compared runs."""

from __future__ import annotations

import csv
import io

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, Dataset, Project, TrainingRun, User
from tests.conftest import make_run
from tests.dashboard.conftest import evaluate, succeed


def rows(client: Client, user: User, run: TrainingRun) -> list[dict[str, str]]:
    client.force_login(user)
    response = client.get(f"{reverse('compare-csv')}?runs={run.pk}")
    assert response["Content-Disposition"] == 'attachment; filename="compare.csv"'
    return list(csv.DictReader(io.StringIO(response.content.decode())))


def test_csv_contains_settings_results_costs_and_points(client: Client, vera: User, adapter: Adapter) -> None:
    evaluate(adapter, 0.0, 0.61)
    found = {
        (row["kind"], row["measure"], row["step"]): row["value"] for row in rows(client, vera, adapter.run)
    }
    assert found["setting", "learning_rate", ""] == "0.0002"
    assert found["base", "exact_match", ""] == "0.0"
    assert found["adapter", "exact_match", ""] == "0.61"
    assert found["cost", "wall_seconds", ""] == "65.0"
    assert found["forecast", "adapter_bytes", ""] == str(adapter.run.forecast["adapter_bytes"])
    assert found["curve", "validation/loss", "10"] == "0.75"
    assert len([key for key in found if key[:2] == ("curve", "train/loss")]) == 10


def test_names_cannot_act_as_formulas(
    client: Client, vera: User, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    run = make_run(project, dataset, base_model, by=ed, name="=1+1")
    assert {row["name"] for row in rows(client, vera, run)} == {"'=1+1"}


def test_queries_do_not_grow_with_the_runs(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(vera)
    runs = [succeed(make_run(project, dataset, base_model, seed=seed)) for seed in range(4)]
    counts = []
    for chosen in (runs[:2], runs):
        # The first request keeps the comparison.
        for _time in range(2):
            with CaptureQueriesContext(connection) as asked:
                client.get(reverse("compare-csv"), {"runs": [run.pk for run in chosen]})
        counts.append(len(asked))
    assert counts[0] == counts[1]
