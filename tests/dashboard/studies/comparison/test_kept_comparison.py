"""A comparison is drawn once, and anew when a row that it shows changes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.core.cache import caches
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from dashboard.models import (
    Adapter,
    BaseModel,
    BlindComparison,
    Dataset,
    Evaluation,
    MetricSeries,
    Project,
    TargetModuleConfig,
    TrainingRun,
    User,
)
from tests.conftest import make_dataset
from tests.dashboard.studies.comparisons import rights, scored_runs

pytestmark = pytest.mark.django_db


def vote(run: TrainingRun) -> None:
    """Record that somebody prefers the adapter of a run to its base model."""
    messages = [{"role": "user", "content": "Which colour?"}]
    sides = [run.adapter, None]
    BlindComparison.record(run.project, run.base_model, sides, messages, ["red", "blue"], voter=None).cast(
        "a"
    )


CHANGES: dict[str, Callable[[TrainingRun], object]] = {
    "a run gets a name": lambda run: TrainingRun.objects.filter(pk=run.pk).update(name="Renamed"),
    "the dataset gets a name": lambda run: Dataset.objects.exclude(name="Validation").update(name="Renamed"),
    "the validation dataset gets a name": lambda run: Dataset.objects.filter(name="Validation").update(
        name="Renamed"
    ),
    "the base model gets a name": lambda run: BaseModel.objects.update(name="Renamed", hub_id="a/renamed"),
    "a config gets a name": lambda run: TargetModuleConfig.objects.filter(
        pk=run.target_module_config_id
    ).update(name="Renamed"),
    "a run is scored anew": lambda run: run.evaluations.update(metrics={"exact_match": 0.125}),
    "the base model is scored anew": lambda run: Evaluation.objects.filter(subject="base").update(
        metrics={"exact_match": 0.125}
    ),
    "an evaluation is deleted": lambda run: run.evaluations.filter(subject="adapter").delete(),
    "time is measured anew": lambda run: TrainingRun.objects.filter(pk=run.pk).update(
        measured={"wall_seconds": 7777}
    ),
    "a curve grows": lambda run: MetricSeries.objects.append(run, "train/loss", [(11, 0.125)]),
    "an adapter shrinks": lambda run: Adapter.objects.filter(run=run).update(size_bytes=7_700_000),
    "somebody votes": vote,
}


@pytest.fixture
def runs(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> list[TrainingRun]:
    arms = {"Low": [rights(0.3, seed=1)], "High": [rights(0.9, seed=2)]}
    scored = scored_runs(project, dataset, base_model, ed, arms)
    TrainingRun.objects.update(validation_version=make_dataset(project, "Validation").newest())
    return scored


def page(client: Client, runs: list[TrainingRun]) -> str:
    """Return the page without the token of its forms and the present minute."""
    answer = client.get(f"{reverse('compare')}?runs={','.join(str(run.pk) for run in runs)}")
    text = answer.content.decode()
    return re.sub(r"""(FToken": "|csrfmiddlewaretoken" value=")\w+|\d\d:\d\d UTC""", "", text)


@pytest.mark.parametrize("change", CHANGES)
def test_no_comparison_is_shown_after_a_row_of_it_changed(
    client: Client, vera: User, runs: list[TrainingRun], change: str
) -> None:
    client.force_login(vera)
    before = page(client, runs)
    CHANGES[change](runs[0])
    after = page(client, runs)
    assert after != before
    caches["rendered"].clear()
    assert after == page(client, runs)


def test_scores_are_read_for_the_first_reader_alone(
    client: Client, vera: User, otto: User, runs: list[TrainingRun]
) -> None:
    client.force_login(vera)
    with CaptureQueriesContext(connection) as first:
        page(client, runs)
    with CaptureQueriesContext(connection) as second:
        page(client, runs)
    assert len(second) < len(first) - 5
    client.force_login(otto)
    assert client.get(f"{reverse('compare')}?runs={runs[0].pk},{runs[1].pk}").status_code == 404
