"""Time per token as a cost of an arm."""

from __future__ import annotations

import csv
import io

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Evaluation, Study, User
from dashboard.models.studies.results.result import costs_of
from dashboard.templatetags.graftworks import milliseconds


def test_time_per_token_is_the_mean_over_seeds(study: Study) -> None:
    arms = {arm.name: arm for arm in study.arms.all()}
    assert costs_of(arms["efficient"].final_runs())["ms_per_token"] == 21.5
    other = Evaluation.objects.filter(run__study_arm=arms["efficient"]).order_by("pk").last()
    assert other
    other.metrics["ms_per_token"] = 27.5
    other.save()
    fresh = Study.objects.with_facts().get(pk=study.pk)
    assert costs_of(fresh.arm_list[0].final_runs())["ms_per_token"] == pytest.approx(23.5)


def test_csv_and_api_contain_time_per_token(client: Client, api: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    text = client.get(reverse("study-deltas-csv", args=[study.pk])).content.decode()
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(text))}
    assert float(rows["mlp"]["ms_per_token"]) == 24.5
    arms = api.get(f"/api/v1/studies/{study.pk}").json()["arms"]
    assert [arm["ms_per_token"] for arm in arms] == [21.5, 24.5, 27.5]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (4.1234, "4.12 ms"),
        (31.49, "31.5 ms"),
        (204.4, "204 ms"),
        (999.6, "1,000 ms"),
        (1250, "1,250 ms"),
    ],
)
def test_format_of_milliseconds(value: float | str | None, words: str) -> None:
    assert milliseconds(value) == words
