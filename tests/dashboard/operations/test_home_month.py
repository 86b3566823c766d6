"""The month at a glance, which managers see first on Home."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from dashboard.charts import best_scores
from dashboard.models import (
    BaseModel,
    Dataset,
    DatasetVersion,
    Decision,
    Project,
    State,
    Study,
    TrainingRun,
    User,
)
from dashboard.presenters import month_overview
from dashboard.views.operations import home as views
from tests.conftest import finish, make_dataset, make_run
from tests.dashboard.conftest import evaluate, publish, start_training
from tests.dashboard.studies.factories import Table, conclude, make_study

SEEDS = list(range(1, 4))
SCORES: Table = {
    "base": {0: [0.0] * 40},
    "efficient": {seed: [1.0] * 10 + [0.0] * 30 for seed in SEEDS},
    "quality": {seed: [1.0] * 38 + [0.0] * 2 for seed in SEEDS},
}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """A finished study in which Quality is better."""
    queued = make_study(project, dataset, base_model, by=ed, seeds=SEEDS, reference="efficient")
    return conclude(queued, SCORES)


def home(client: Client, user: User) -> Any:
    """Return the page as a process draws it that has drawn none."""
    caches["rendered"].clear()
    client.force_login(user)
    return client.get("/")


def text(client: Client, user: User) -> str:
    return " ".join(home(client, user).content.decode().split())


def test_a_verdict_with_its_interval_leads_to_the_report(client: Client, mara: User, study: Study) -> None:
    page = text(client, mara)
    assert "What got better" in page
    assert study.summary["verdict"] in page
    assert "95 % interval" in page
    assert reverse("study-report", args=[study.pk]) in page


def test_editors_and_viewers_keep_their_home(client: Client, ed: User, vera: User, study: Study) -> None:
    for user in (ed, vera):
        assert "month" not in home(client, user).context
        assert "What got better" not in text(client, user)


def test_another_manager_sees_nothing_of_it(client: Client, otto: User, study: Study) -> None:
    assert study.name not in text(client, otto)


def test_before_the_first_adapter_a_manager_has_the_checklist(client: Client, mara: User) -> None:
    assert "month" not in home(client, mara).context


def test_an_older_study_is_no_result_of_this_month(client: Client, mara: User, study: Study) -> None:
    Study.objects.update(finished_at=timezone.now() - timedelta(days=40))
    month = home(client, mara).context["month"]
    assert month.verdicts == []
    assert month.undecided == [study]


def test_one_verdict_per_dataset(
    client: Client, mara: User, study: Study, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    newer = conclude(make_study(project, dataset, base_model, seeds=[1], name="Again"), {**SCORES})
    assert home(client, mara).context["month"].verdicts == [(newer, 1)]


def test_decisions_wait_until_a_manager_takes_them(
    client: Client, mara: User, ed: User, study: Study
) -> None:
    assert home(client, mara).context["month"].undecided == [study]
    adapter = study.runs().first().adapter  # type: ignore[union-attr]
    Decision.objects.record(study, adapter, "Better for <b>all</b>.", ed)
    month = home(client, mara).context["month"]
    assert (month.undecided, month.decisions, len(month.proposals)) == ([], [], 1)
    assert "Waits for your approval:" in text(client, mara)
    assert "<b>all</b>" not in text(client, mara)
    Decision.objects.record(study, adapter, "Yes.", mara)
    month = home(client, mara).context["month"]
    assert (len(month.proposals), len(month.decisions)) == (0, 2)


def test_what_is_not_listed_is_counted(
    client: Client, mara: User, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(month_overview, "ROWS", 0)
    month = home(client, mara).context["month"]
    assert (month.further_datasets, month.further_decisions) == (1, 1)
    assert "1 further decision waits." in text(client, mara)


def test_failures_are_counted_by_cause(
    client: Client, mara: User, run: TrainingRun, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    publish(run)
    for number, code in enumerate(("bad_data", "bad_data", "diverged")):
        failed = make_run(project, dataset, base_model, by=mara, name=f"Failed {number}")
        failed.end("failed", step=1, code=code, message=f"Cause of {code}.")
    month = home(client, mara).context["month"]
    assert [(cause["count"], cause["run"].name) for cause in month.failures] == [
        (2, "Failed 1"),
        (1, "Failed 2"),
    ]
    assert (month.failed_runs, month.finished_runs) == (3, 1)
    assert "Cause of bad_data." in text(client, mara)


def test_waiting_people_are_named(
    client: Client, mara: User, ed: User, run: TrainingRun, dataset: Dataset, base_model: BaseModel
) -> None:
    publish(run)
    for _count in range(2):
        make_run(run.project, dataset, base_model, by=ed, name="Waits")
    (row,) = home(client, mara).context["month"].waiting
    assert (row["person"], row["count"]) == (ed, 2)


def test_an_empty_month_says_so(client: Client, mara: User, run: TrainingRun) -> None:
    publish(run)
    TrainingRun.objects.update(created_at=timezone.now() - timedelta(days=40))
    assert "Nothing finished yet this month" in text(client, mara)


def test_a_month_of_work_that_has_not_ended_is_not_empty(
    client: Client, mara: User, run: TrainingRun, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    publish(run)
    TrainingRun.objects.update(created_at=timezone.now() - timedelta(days=40))
    assert home(client, mara).context["month"].is_empty
    start_training(make_run(project, dataset, base_model, by=mara))
    assert not home(client, mara).context["month"].is_empty


def test_an_empty_month_still_shows_the_best_scores(client: Client, mara: User, run: TrainingRun) -> None:
    evaluate(publish(run), 0.1, 0.5)
    TrainingRun.objects.update(created_at=timezone.now() - timedelta(days=40))
    page = home(client, mara)
    assert page.context["month"].is_empty
    assert "data-dates" in page.content.decode()


# The chart


def test_the_best_score_rises_in_steps(
    client: Client, mara: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    reviews = make_dataset(project, "Reviews")
    for data, score in ((dataset, 0.2), (dataset, 0.5), (dataset, 0.4), (reviews, 0.9), (dataset, 0.7)):
        evaluate(publish(make_run(project, data, base_model, by=mara)), 0.1, score)
    rows = best_scores.best_scores(project)
    assert [(row["name"], [value for _at, value in row["points"]]) for row in rows] == [
        ("Tickets", [0.2, 0.5, 0.7]),
        ("Reviews", [0.9]),
    ]
    [chart] = home(client, mara).context["charts"]
    points = chart["curves"]["series"][0]["points"]
    assert [value for _day, value in points] == [20.0, 50.0, 70.0, 70.0]
    assert "New best score this month on Tickets" in text(client, mara)


def test_a_first_score_is_no_better_one(client: Client, mara: User, run: TrainingRun) -> None:
    evaluate(publish(run), 0.1, 0.5)
    assert "First scores this month, and no best score" in text(client, mara)
    rows, later = best_scores.best_scores(run.project), timezone.now() + timedelta(days=31)
    assert best_scores.finding(rows, later) == "No new best score this month"


def test_datasets_without_answers_have_a_chart_of_their_loss(
    client: Client, mara: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    novels = make_dataset(project, "Novels")
    DatasetVersion.objects.filter(dataset=novels).update(report={"answers": "none"})
    for data in (dataset, novels):
        evaluate(publish(make_run(project, data, base_model, by=mara)), 0.1, 0.5)
    found = home(client, mara).context["charts"]
    assert [(chart["unit"], chart["curves"]["series"][0]["label"]) for chart in found] == [
        ("percent", "Tickets"),
        ("loss", "Novels"),
    ]


def test_scores_of_an_open_study_are_no_points(study: Study, project: Project) -> None:
    DatasetVersion.objects.update(report={"answers": "label"})
    assert best_scores.best_scores(project)
    study.reopen()
    assert best_scores.best_scores(project) == []


def test_more_rows_need_no_more_queries(
    client: Client, mara: User, study: Study, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(mara)

    def queries() -> int:
        client.get("/")  # fills what the process keeps
        with CaptureQueriesContext(connection) as captured:
            client.get("/")
        return len(captured)

    def add(number: int) -> None:
        data = make_dataset(project, f"More {number}")
        conclude(make_study(project, data, base_model, seeds=[1], name=f"Study {number}"), SCORES)
        make_run(project, data, base_model, by=mara)
        failed = make_run(project, data, base_model, by=mara)
        failed.end("failed", step=1, code=f"code{number}", message="No.")

    add(0)
    few = queries()
    for number in range(1, 4):
        add(number)
    assert queries() <= few


def month_of(client: Client) -> str:
    """Return the month's part of the page."""
    page = client.get("/").content.decode()
    return page.partition('class="month"')[2].partition('id="running"')[0]


def test_the_month_is_kept_until_something_happens(
    client: Client, mara: User, run: TrainingRun, study: Study
) -> None:
    publish(run)
    failing = make_run(run.project, run.dataset_version.dataset, run.base_model)
    before = text(client, mara)
    Dataset.objects.update(name="Renamed")
    with CaptureQueriesContext(connection) as kept:
        assert "Renamed" not in month_of(client)
    assert failing.job
    finish(failing.job, State.FAILED, error_code="diverged", error_message="The loss grew too much.")
    with CaptureQueriesContext(connection) as drawn:
        after = month_of(client)
    assert "The loss grew too much." not in before
    assert "The loss grew too much." in after
    assert "Renamed" in after
    assert len(kept) < len(drawn) - 10


def test_the_month_is_drawn_anew_after_some_seconds(
    client: Client, mara: User, run: TrainingRun, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(run)
    home(client, mara)
    Dataset.objects.update(name="Renamed")
    later = time.time() + views.MONTH_SECONDS
    monkeypatch.setattr(views.time, "time", lambda: later)
    assert "Renamed" in month_of(client)
