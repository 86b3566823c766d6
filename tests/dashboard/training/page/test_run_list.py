"""The table of runs: order, filters and columns in the address, CSV, and the number of queries."""

from __future__ import annotations

import csv
import io
from urllib.parse import urlencode

import pytest
from django.db import connection
from django.http import QueryDict
from django.test import Client
from django.test.utils import CaptureQueriesContext

from dashboard.models import BaseModel, Dataset, MetricSeries, Project, RunScore, Tag, TrainingRun, User
from dashboard.models.evaluations.run_list import RunFilter, RunOrder, listed_runs
from tests.conftest import make_base_model, make_dataset, make_run
from tests.dashboard.conftest import evaluate, publish
from tests.dashboard.studies.factories import Table, conclude, make_study

URL = "/runs/"


@pytest.fixture
def scored(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> list[TrainingRun]:
    """Four runs: with exact matches of 0.4, 0.8 and 0.4, and one that waits."""
    runs = [make_run(project, dataset, base_model, by=ed, name=name) for name in ("A", "B", "C", "D")]
    for run, score in zip(runs, (0.4, 0.8, 0.4), strict=False):
        evaluate(publish(run), 0.1, score)
    return runs


def names(client: Client, **query: str | float) -> list[str]:
    return [run.name for run in client.get(URL, query).context["runs"]]


def errors(client: Client, **query: str | float) -> dict[str, list[str]]:
    return dict(client.get(URL, query).context["form"].errors)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("-exact_match", ["B", "C", "A", "D"]),
        ("exact_match", ["C", "A", "B", "D"]),
        ("name", ["A", "B", "C", "D"]),
        ("-name", ["D", "C", "B", "A"]),
        ("created", ["A", "B", "C", "D"]),
        ("cost", ["B", "A", "D", "C"]),
        ("train/loss", ["A", "D", "C", "B"]),
        ("size", ["C", "B", "A", "D"]),
    ],
)
def test_it_sorts_with_unknown_values_last(
    client: Client, vera: User, scored: list[TrainingRun], sort: str, order: list[str]
) -> None:
    for run, seconds in zip(scored, (20.0, 3.0), strict=False):
        TrainingRun.objects.filter(pk=run.pk).update(training_seconds=seconds)
    MetricSeries.objects.filter(run__in=scored).delete()
    MetricSeries.objects.create(run=scored[0], name="train/loss", last=0.5)
    client.force_login(vera)
    assert names(client, sort=sort) == order


@pytest.mark.parametrize(
    "sort", ["-exact_match", "exact_match", "name", "-name", "-created", "created", "-cost"]
)
def test_pages_continue_where_the_last_one_ended(
    scored: list[TrainingRun], project: Project, sort: str
) -> None:
    order = RunOrder.parse(sort)
    whole = order.keys(listed_runs(project, RunFilter()), 10)
    paged: list[int] = []
    while found := order.keys(listed_runs(project, RunFilter()), 1, paged[-1] if paged else None):
        paged += found
    assert paged == whole
    assert len(whole) == 4


def test_it_filters_by_what_a_run_has(
    client: Client, vera: User, ed: User, mara: User, project: Project, scored: list[TrainingRun]
) -> None:
    other = make_run(
        project, make_dataset(project, "Reviews"), make_base_model(project, "Big", "example/big"), by=mara
    )
    Tag.objects.attach([scored[1], other], Tag.objects.named(project, ["baseline"])[0])
    client.force_login(vera)
    assert names(client, base_model=other.base_model_id) == [other.name]
    assert names(client, dataset=other.dataset_version.dataset_id) == [other.name]
    assert names(client, created_by=mara.pk) == [other.name]
    assert len(names(client, target_module_config=other.target_module_config_id)) == 5
    assert names(client, tag="baseline") == [other.name, "B"]
    assert names(client, tag="baseline", created_by=ed.pk) == ["B"]
    assert names(client, metric="exact_match", min=0.5) == ["B"]
    assert names(client, metric="exact_match", max=0.5, sort="name") == ["A", "C"]
    assert names(client, metric="loss") == ["C", "B", "A"]


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ({"state": "nonsense"}, "state", "There is no state “nonsense”."),
        ({"sort": "spec"}, "sort", "`sort` must be one of created, name"),
        ({"metric": "x"}, "metric", "There is no metric “x”."),
        ({"min": 1}, "metric", "Choose the metric"),
        ({"metric": "loss", "min": 2, "max": 1}, "max", "must not be below"),
        ({"metric": "loss", "min": "much"}, "min", "Enter a number"),
        ({"dataset": 99}, "dataset", "no such dataset"),
        ({"created_by": "ed"}, "created_by", "no member"),
        ({"columns": "spec"}, "columns", "There is no column “spec”."),
        ({"q": "a\0b"}, "q", "Null characters"),
    ],
)
def test_a_wrong_value_is_named_and_ignored(
    client: Client, vera: User, run: TrainingRun, query: dict[str, str | float], field: str, words: str
) -> None:
    client.force_login(vera)
    assert words in errors(client, **query)[field][0]
    assert names(client, **{key: value for key, value in query.items() if key != "metric"}) == ["Triage"]


def test_another_project_s_rows_are_no_choice(client: Client, otto: User, run: TrainingRun) -> None:
    client.force_login(otto)
    assert list(
        errors(client, dataset=run.dataset_version.dataset_id, created_by=run.created_by_id or 0)
    ) == [
        "dataset",
        "created_by",
    ]


def test_columns_are_chosen_and_ordered(client: Client, vera: User, scored: list[TrainingRun]) -> None:
    client.force_login(vera)
    answer = client.get(URL + "?columns=loss&columns=state&sort=-token_f1")
    assert [column.key for column in answer.context["columns"]] == ["name", "loss", "state", "token_f1"]
    page = answer.content.decode()
    assert "2.5 → <strong>0.5</strong>" in page
    assert 'aria-sort="descending"' in page
    assert 'href="?columns=loss&amp;columns=state&amp;sort=token_f1"' in page


def test_csv_holds_what_is_shown(client: Client, vera: User, scored: list[TrainingRun]) -> None:
    TrainingRun.objects.filter(pk=scored[0].pk).update(name="=1+1", note="first\nline")
    client.force_login(vera)
    query = urlencode({"sort": "-exact_match", "metric": "exact_match"}) + "&columns=exact_match&columns=note"
    answer = client.get(f"/runs/runs.csv?{query}")
    rows = list(csv.reader(io.StringIO(answer.content.decode())))
    assert rows[0] == ["run", "name", "base exact_match", "exact_match", "note"]
    assert [row[1] for row in rows[1:]] == ["B", "C", "'=1+1"]
    assert rows[3][2:] == ["0.1", "0.4", "first\nline"]
    assert answer["Content-Disposition"].startswith("attachment")


def test_scores_of_a_study_stay_sealed_until_it_ends(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    scores: Table = {"base": {0: [0, 1]}, "efficient": {1: [1, 1]}, "quality": {1: [1, 0]}}
    study = make_study(project, dataset, base_model, seeds=[1])
    study = conclude(study, scores)
    runs = set(study.runs().values_list("pk", flat=True))
    assert set(RunScore.objects.values_list("run", flat=True)) == runs
    study.reopen()
    RunScore.objects.refresh(runs)
    assert not RunScore.objects.exists()
    client.force_login(vera)
    assert names(client, metric="exact_match") == []


def test_names_tags_and_notes_are_escaped(client: Client, vera: User, run: TrainingRun) -> None:
    bad = "<img src=x>"
    TrainingRun.objects.filter(pk=run.pk).update(name=bad, note=bad)
    Tag.objects.set_all(run, [bad])
    client.force_login(vera)
    page = client.get(URL, {"columns": ["note", "tags"]}).content.decode()
    assert bad not in page
    assert page.count("&lt;img src=x&gt;") >= 4


def test_more_rows_need_no_more_queries(
    client: Client, vera: User, project: Project, scored: list[TrainingRun]
) -> None:
    client.force_login(vera)

    def queries(address: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            client.get(address)
        return len(captured)

    addresses = (URL, f"{URL}?sort=-exact_match&columns=train/loss&columns=r", "/adapters/?sort=exact_match")
    few = [queries(address) for address in addresses]
    copies = [TrainingRun.objects.get(pk=scored[0].pk) for _count in range(60)]
    for copy in copies:
        copy.pk, copy._state.adding = None, True
    TrainingRun.objects.bulk_create(copies)
    RunScore.objects.bulk_create(
        RunScore(run=run, metric="exact_match", value=0.5)
        for run in TrainingRun.objects.filter(stored_scores=None)
    )
    many = [queries(address) for address in addresses]
    assert all(after <= before for before, after in zip(few, many, strict=True)), (few, many)


def test_an_order_by_a_metric_reads_the_index(project: Project, scored: list[TrainingRun]) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("reads SQLite's plan")
    with CaptureQueriesContext(connection) as captured:
        RunOrder.parse("-exact_match").keys(listed_runs(project, RunFilter()), 2)
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {captured[0]['sql']}")
        plan = " ".join(str(row[-1]) for row in cursor.fetchall())
    assert "dashboard_r_metric" in plan, plan
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan, plan


def test_the_address_of_a_form_repeats_only_valid_values(project: Project) -> None:
    from dashboard.forms.training.run_list import RunListForm

    form = RunListForm(QueryDict("q=x&state=wrong&cursor=5&other=1"), project=project)
    assert form.address() == "q=x"
