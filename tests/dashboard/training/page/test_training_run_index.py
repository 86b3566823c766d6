"""The list of runs: rows, filters, pages and visibility."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, Project, State, TrainingRun, User
from tests.conftest import finish, make_run
from tests.dashboard.conftest import evaluate, publish

URL = reverse("training-run-index")


def names(client: Client, **query: str | int) -> list[str]:
    return [run.name for run in client.get(URL, query).context["runs"]]


def test_a_row_names_state_preset_model_dataset_and_creator(
    client: Client, vera: User, run: TrainingRun
) -> None:
    client.force_login(vera)
    page = client.get(URL).content.decode()
    for text in ("Triage", "Waiting", "Efficient", "Tiny", "Tickets:v1", "ed@example.org"):
        assert text in page


def test_a_row_shows_the_metric_of_base_and_adapter(client: Client, vera: User, run: TrainingRun) -> None:
    evaluate(publish(run), 0.1, 0.62)
    client.force_login(vera)
    assert "10.0 % → <strong>62.0 %</strong>" in client.get(URL).content.decode()


def test_it_shows_percent_and_time_left(client: Client, vera: User, run: TrainingRun) -> None:
    assert run.job is not None
    run.job.move("claim", attempt=1)
    run.job.move("progress", phase="training", step=5, total_steps=10, eta_seconds=65.0)
    client.force_login(vera)
    page = client.get(URL).content.decode()
    assert "50 %, about 1 min left" in page
    assert "every 10s" in page


def test_an_ended_run_is_not_polled(client: Client, vera: User, run: TrainingRun) -> None:
    assert run.job is not None
    finish(run.job, State.FAILED)
    client.force_login(vera)
    assert "every 10s" not in client.get(URL).content.decode()


def test_it_filters_by_state_and_words(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    done, failed, _waiting = (
        make_run(project, dataset, base_model, by=ed, name=name) for name in ("Done", "Broken", "Waits")
    )
    publish(done)
    assert failed.job is not None
    finish(failed.job, State.FAILED)
    client.force_login(ed)
    assert names(client, state="finished") == ["Done"]
    assert names(client, state="failed") == ["Broken"]
    assert names(client, state="active") == ["Waits"]
    assert names(client, q="roke") == ["Broken"]
    assert names(client, q="roke", state="finished") == []


@pytest.mark.parametrize("cursor", ["x", "9" * 40])
def test_an_invalid_cursor_shows_the_first_page(
    client: Client, vera: User, run: TrainingRun, cursor: str
) -> None:
    client.force_login(vera)
    assert names(client, cursor=cursor) == ["Triage"]


def test_a_cursor_shows_older_runs(client: Client, vera: User, run: TrainingRun) -> None:
    client.force_login(vera)
    assert names(client, cursor=run.pk + 1) == ["Triage"]
    assert names(client, cursor=run.pk) == []


def test_the_number_of_queries_does_not_grow(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            client.get(URL)
        return len(captured)

    for _count in range(2):
        evaluate(publish(make_run(project, dataset, base_model, by=ed)), 0.0, 0.5)
    few = queries()
    for _count in range(6):
        evaluate(publish(make_run(project, dataset, base_model, by=ed)), 0.0, 0.5)
    assert queries() == few


def test_it_hides_runs_of_another_project(client: Client, otto: User, run: TrainingRun) -> None:
    client.force_login(otto)
    assert names(client) == []
    assert "No runs yet" in client.get(URL).content.decode()


def test_it_offers_no_start_to_a_viewer(client: Client, vera: User, project: Project) -> None:
    client.force_login(vera)
    assert "New fine-tune" not in client.get(URL).content.decode()


def test_the_list_asks_once_for_the_states_of_all_open_runs(
    client: Client, vera: User, otto: User, run: TrainingRun, dataset: Dataset, base_model: BaseModel
) -> None:
    second = make_run(run.project, dataset, base_model)
    client.force_login(vera)
    (poll,) = re.findall(r'hx-get="([^"]+)"', client.get(URL).content.decode())
    assert poll == f"{reverse('training-run-states')}?runs={second.pk},{run.pk}"
    assert run.job
    finish(run.job, State.FAILED)
    with CaptureQueriesContext(connection) as captured:
        states = client.get(poll).content.decode()
    assert sum("dashboard_trainingrun" in query["sql"] for query in captured) == 1
    assert re.findall(r'id="state-(\d+)"\s+hx-swap-oob', states) == [str(second.pk), str(run.pk)]
    assert "Failed" in states
    assert f'?runs={second.pk}"' in states, "only those that go on are asked for again"
    client.force_login(otto)
    assert "state-" not in client.get(poll).content.decode()
