"""The Compare page: choice of runs, curves, settings and permissions."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, Dataset, MetricSeries, Project, SavedView, TrainingRun, User
from dashboard.models.operations.run_deletion import delete_runs
from dashboard.views.studies import compare
from tests.conftest import make_dataset, make_run
from tests.dashboard.conftest import evaluate, publish, succeed


@pytest.fixture
def pair(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> list[Adapter]:
    """Two finished runs that differ in their learning rate."""
    runs = [
        make_run(project, dataset, base_model, by=ed, name=name, learning_rate=rate)
        for name, rate in (("Calm", 1e-4), ("Bold", 1e-3))
    ]
    return [publish(run) for run in runs]


def address(*runs: TrainingRun, more: str = "", route: str = "compare") -> str:
    return f"{reverse(route)}?runs={','.join(str(run.pk) for run in runs)}{more}"


def page(client: Client, user: User, *runs: TrainingRun, **options: str) -> str:
    client.force_login(user)
    response = client.get(address(*runs, **options))
    assert response.status_code == 200
    return response.content.decode()


def runs_of(pair: list[Adapter]) -> list[TrainingRun]:
    return [adapter.run for adapter in pair]


def curves(text: str, number: int) -> list[dict[str, object]]:
    data = re.findall(r'data-series="(.*?)"', text)
    return list(json.loads(unescape(data[number - 1])))


def curves_page(client: Client, user: User, *runs: TrainingRun) -> str:
    return page(client, user, *runs, route="compare-curves")


def test_curves_have_labels_and_colours(client: Client, vera: User, pair: list[Adapter]) -> None:
    calm, bold = curves(curves_page(client, vera, *runs_of(pair)), 1)
    first, second = runs_of(pair)
    assert (calm["label"], bold["label"]) == (f"Calm #{first.pk}", f"Bold #{second.pk}")
    assert calm["points"] == [[step, pytest.approx(3.0 / step)] for step in range(1, 11)]
    assert (calm["colour"], calm["dash"]) != (bold["colour"], bold["dash"])


def test_curves_over_seconds_have_short_numbers(client: Client, vera: User, run: TrainingRun) -> None:
    succeed(run, seconds=70.0 / 3)
    text = page(client, vera, run, route="compare-curves", more="&x=seconds")
    assert curves(text, 2)[0]["points"] == [[11.6667, 1.25], [23.3333, 0.75]]


def test_other_runs_are_fetched_when_the_list_is_opened(
    client: Client, vera: User, otto: User, pair: list[Adapter]
) -> None:
    first, second = runs_of(pair)
    ticked = rf'value="{first.pk}"\s+checked'
    assert not re.search(ticked, page(client, vera, first))
    listed = page(client, vera, first, route="compare-runs")
    assert re.search(ticked, listed)
    assert f'value="{second.pk}"' in listed
    client.force_login(otto)
    for route in ("compare-runs", "compare-curves"):
        assert client.get(address(first, route=route)).status_code == 404


def test_every_chart_has_a_table(client: Client, vera: User, pair: list[Adapter]) -> None:
    text = curves_page(client, vera, *runs_of(pair))
    assert text.count("Show as table") == text.count('class="chart"') == 2
    assert re.search(r'<th scope="row" class="num">5</th>\s*<td class="num">1.25</td>', text)


def test_equal_settings_can_be_hidden(client: Client, vera: User, pair: list[Adapter]) -> None:
    text = page(client, vera, *runs_of(pair), more="&show=differences")
    assert "<code>learning_rate</code>" in text
    assert "<code>max_length</code>" not in text
    assert "settings are the same for all and are not shown" in text


def test_exact_matches_are_indicative_only(client: Client, vera: User, pair: list[Adapter]) -> None:
    evaluate(pair[0], 0.0, 0.42)
    evaluate(pair[1], 0.0, 0.61)
    text = page(client, vera, *runs_of(pair))
    assert re.findall(r"(0\.0 %) → <strong>([\d.]+ %)</strong> <span[^>]*>on 200 rows", text) == [
        ("0.0 %", "42.0 %"),
        ("0.0 %", "61.0 %"),
    ]
    assert "indicative only" in text
    assert not re.search(r"\b(winner|better than|best)\b", text, re.I)


def test_runs_without_evaluation_are_counted(client: Client, vera: User, pair: list[Adapter]) -> None:
    evaluate(pair[0], 0.0, 0.42)
    assert "1 run has no evaluation yet." in page(client, vera, *runs_of(pair))


def test_different_datasets_are_warned_of(
    client: Client, vera: User, ed: User, project: Project, base_model: BaseModel, run: TrainingRun
) -> None:
    other = make_run(project, make_dataset(project, "Mails", by=ed), base_model, by=ed)
    assert "different dataset versions" in page(client, vera, run, other)


def test_runs_of_one_name_have_different_labels(
    client: Client, vera: User, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    name = "Routing of incoming messages by team"
    runs = [publish(make_run(project, dataset, base_model, by=ed, name=name)).run for _time in range(2)]
    labels = [one["label"] for one in curves(curves_page(client, vera, *runs), 1)]
    assert labels == [f"Routing of inco… #{run.pk}" for run in runs]


def test_non_finite_loss_is_a_gap(client: Client, vera: User, run: TrainingRun) -> None:
    MetricSeries.objects.append(run, "train/loss", [(1, 2.0), (2, float("nan"))])
    assert curves(curves_page(client, vera, run), 1)[0]["points"] == [[1, 2.0], [2, None]]


def test_page_without_query_lists_runs(client: Client, vera: User, run: TrainingRun) -> None:
    text = page(client, vera)
    assert re.search(rf'name="runs"\s+value="{run.pk}"', text)


@pytest.mark.parametrize("runs", ["999999", "1;2", "٣", "9" * 40, "1%00"])
def test_unknown_and_malformed_ids_get_404(client: Client, vera: User, run: TrainingRun, runs: str) -> None:
    client.force_login(vera)
    assert client.get(f"{reverse('compare')}?runs={runs}").status_code == 404


def test_deleted_runs_are_named_beside_those_that_are_left(
    client: Client, vera: User, project: Project, pair: list[Adapter]
) -> None:
    gone, left = runs_of(pair)
    saved = SavedView.objects.create(project=project, name="Both", query=f"runs={gone.pk},{left.pk}")
    delete_runs(project, [gone.pk])
    client.force_login(vera)
    text = client.get(saved.get_absolute_url()).content.decode()
    assert f"Run #{gone.pk} is missing here" in text
    assert left.name in text
    # What the page offers names no run that would answer 404.
    assert f'href="{address(left, route="compare-csv")}"' in text
    assert client.get(address(gone, left, route="compare-csv")).status_code == 404
    assert client.get(address(gone)).status_code == 404


def test_runs_beyond_the_most_are_left_out(
    client: Client, vera: User, pair: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "MOST_COMPARED", 1)
    first, second = runs_of(pair)
    text = page(client, vera, first, second)
    assert "at most 1 runs, so 1 run is left out" in text
    assert f'href="{address(first, route="compare-csv")}"' in text
    assert second.name not in text


def test_outsider_gets_404(client: Client, otto: User, run: TrainingRun) -> None:
    client.force_login(otto)
    assert client.get(address(run)).status_code == 404
    assert run.name not in client.get(reverse("compare")).content.decode()
