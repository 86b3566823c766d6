"""What a token costs in time, as one more axis beside parameters, bytes, memory and training time."""

from __future__ import annotations

import csv
import io
import re

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.charts import study_charts
from dashboard.models import Evaluation, Study, User
from dashboard.models.studies.results.result import costs_of
from dashboard.templatetags.graftworks import milliseconds
from tests.dashboard.studies.comparison.test_compare_verdict import runs
from tests.dashboard.studies.comparisons import rights, scored_runs
from tests.dashboard.studies.results.test_study_result import study
from tests.dashboard.studies.test_api_studies import api

__all__ = ["api", "rights", "runs", "scored_runs", "study"]


def row_of(page: str, name: str) -> str:
    """The text of one arm's row in the table of differences."""
    found = re.search(rf"<tr>\s*<th scope=\"row\">\s*{name}.*?</tr>", page, re.DOTALL)
    assert found
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split())


def test_it_is_a_cost_of_an_arm_as_the_mean_over_its_seeds(study: Study) -> None:
    arms = {arm.name: arm for arm in study.arms.all()}
    assert costs_of(arms["efficient"].final_runs())["ms_per_token"] == 21.5
    other = Evaluation.objects.filter(run__study_arm=arms["efficient"]).order_by("pk").last()
    assert other
    other.metrics["ms_per_token"] = 27.5
    other.save()
    fresh = Study.objects.with_facts().get(pk=study.pk)
    assert costs_of(fresh.arm_list[0].final_runs())["ms_per_token"] == pytest.approx(23.5)


def test_quality_can_be_drawn_against_it(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = client.get(f"{study.get_absolute_url()}?cost=ms_per_token").content.decode()
    assert "Time per token to the right" in page
    found = study_charts.pareto(study, "ms_per_token")
    assert found
    assert len(found["marks"]) == 3
    assert all(text.endswith(" ms") for _place, text in found["ticks_x"])


def test_the_table_and_the_api_have_it(client: Client, api: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    text = client.get(reverse("study-deltas-csv", args=[study.pk])).content.decode()
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(text))}
    assert float(rows["mlp"]["ms_per_token"]) == 24.5
    arms = api.get(f"/api/v1/studies/{study.pk}").json()["arms"]
    assert [arm["ms_per_token"] for arm in arms] == [21.5, 24.5, 27.5]


def test_unmeasured_it_has_no_column(client: Client, vera: User, study: Study) -> None:
    for one in Evaluation.objects.all():
        one.metrics.pop("ms_per_token")
        one.save()
    fresh = Study.objects.with_facts().get(pk=study.pk)
    assert study_charts.pareto(fresh, "ms_per_token") is None
    client.force_login(vera)
    assert "Time per token" not in client.get(study.get_absolute_url()).content.decode()
    assert costs_of([])["ms_per_token"] is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        ("", "–"),
        (4.1234, "4.12 ms"),
        (31.49, "31.5 ms"),
        (204.4, "204 ms"),
        (999.6, "1,000 ms"),
        (1250, "1,250 ms"),
    ],
)
def test_it_is_written_with_the_digits_that_it_deserves(value: float | str | None, words: str) -> None:
    assert milliseconds(value) == words
