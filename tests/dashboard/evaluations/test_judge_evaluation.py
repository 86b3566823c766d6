"""The judge page: consent before sending, pending answers only, verdicts, and agreement with votes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from django.conf import settings as configured
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from dashboard.models import (
    BaseModel,
    Dataset,
    EvaluationItem,
    Job,
    Project,
    Study,
    TrainingRun,
    User,
    Vote,
)
from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.judge_evaluation import (
    evaluations_of,
    pending_items,
    pending_questions,
    submit_judge_evaluation,
    write_verdicts,
)
from dashboard.models.studies.results.comparison import UnsavedStudy
from dashboard.models.studies.results.limits import warnings
from tests.conftest import finish, make_run
from tests.dashboard.conftest import publish
from tests.dashboard.studies.comparisons import score
from tests.dashboard.studies.factories import make_study
from workers.contract.judge import Endpoint

KEY = "sk-canary-5772156649"
CONSENT = {"rows": 50, "agreed": "on"}


@pytest.fixture(autouse=True)
def judge(settings: Settings) -> None:
    """Configure a judge; the web process never calls it."""
    settings.JUDGE = Endpoint("https://judge.invalid/v1", "gpt-test", KEY)


@pytest.fixture
def scored(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> TrainingRun:
    """A run whose adapter answers 4 of 6 rows right; its base model none."""
    run = make_run(project, dataset, base_model, by=ed)
    score(publish(run), [1, 1, 1, 1, 0, 0])
    return run


def address(scope: Study | TrainingRun) -> str:
    return reverse(f"{'study' if isinstance(scope, Study) else 'training-run'}-judge", args=[scope.pk])


def page_of(client: Client, user: User, scope: Study | TrainingRun) -> str:
    client.force_login(user)
    response = client.get(address(scope))
    assert response.status_code == 200
    return " ".join(response.content.decode().split())


def judge_all(scope: Study | TrainingRun, by: User, rows: int = 200) -> Job:
    """Run a judge evaluation without a judge: an answer is right if it equals the expected one."""
    job = submit_judge_evaluation(scope, by=by, judge=configured.JUDGE, rows=rows)
    assert job
    verdicts: dict[int, bool | None] = {}
    for text, items in pending_questions(job).items():
        texts = json.loads(text)
        verdicts |= dict.fromkeys(items, texts["given"] == texts["expected"])
    write_verdicts(verdicts)
    finish(job)
    return job


def test_page_shows_data_and_destination(client: Client, ed: User, scored: TrainingRun) -> None:
    text = page_of(client, ed, scored)
    for words in (
        "gpt-test at judge.invalid",
        "Data leaves this installation",
        "(10 in all)",
        "You check answers.",
        "These rows and answers may be sent to judge.invalid",
    ):
        assert words in text, words
    assert KEY not in text
    assert not Job.objects.filter(kind="judge").exists()


@pytest.mark.parametrize(
    ("sent", "field"),
    [({"rows": 200}, "agreed")] + [({**CONSENT, "rows": rows}, "rows") for rows in ("", "1001")],
)
def test_consent_and_rows_are_required(
    client: Client, ed: User, scored: TrainingRun, sent: dict[str, str], field: str
) -> None:
    client.force_login(ed)
    response = client.post(address(scored), sent)
    assert response.status_code == 422
    assert list(response.context["form"].errors) == [field]
    assert not Job.objects.filter(kind="judge").exists()


def test_consent_queues_one_job_and_is_recorded(client: Client, ed: User, scored: TrainingRun) -> None:
    client.force_login(ed)
    for _click in range(2):
        assert client.post(address(scored), CONSENT).status_code == 302
    job = Job.objects.get(kind="judge")
    assert (job.queue, job.created_by, job.spec["rows"]) == ("cpu", ed, 50)
    assert job.spec["judge"].startswith("gpt-test at judge.invalid")
    assert KEY not in str(job.spec)
    text = page_of(client, ed, scored)
    assert "allowed by ed@example.org" in text
    assert 'hx-select="#judge"' in text
    assert 'name="agreed"' not in text
    finish(job)
    assert 'hx-select="#judge"' not in page_of(client, ed, scored)


def test_only_pending_answers_can_be_sent(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel, settings: Settings
) -> None:
    run = make_run(project, dataset, base_model, by=ed)
    score(publish(run), [0.0] * 450)
    judge_all(run, ed, rows=200)
    client.force_login(ed)
    refused = client.post(address(run), {**CONSENT, "rows": 200})
    assert refused.context["form"].has_error("rows", "nothing_pending")
    client.post(address(run), {**CONSENT, "rows": 400})
    latest = Job.objects.get(kind="judge", state="queued")
    assert len(pending_questions(latest)) == 200
    finish(latest)
    judge_all(run, ed, rows=1000)
    assert 'name="agreed"' not in page_of(client, ed, run)
    settings.JUDGE = replace(settings.JUDGE, model="stricter")
    assert "(450 in all)" in page_of(client, ed, run)


def test_the_judge_reads_the_system_message(scored: TrainingRun, ed: User) -> None:
    item = EvaluationItem.objects.filter(evaluation__run=scored).earliest("pk")
    EvaluationItem.objects.filter(pk=item.pk).update(system="Answer in one word.")
    job = submit_judge_evaluation(scored, by=ed, judge=configured.JUDGE, rows=200)
    assert job
    (text,) = [text for text, items in pending_questions(job).items() if item.pk in items]
    assert json.loads(text)["question"] == f"Answer in one word.\n\n{item.prompt}"


def test_a_larger_draw_contains_the_smaller_one(scored: TrainingRun) -> None:
    def rows(most: int) -> set[int]:
        return set(pending_items(evaluations_of(scored), "m", most).values_list("row", flat=True))

    assert [len(rows(most)) for most in (0, 2, 4, 9)] == [0, 2, 4, 6]
    assert rows(2) < rows(4) < rows(9)


def test_counts_and_the_way_to_the_scores_are_shown(
    client: Client, vera: User, ed: User, scored: TrainingRun
) -> None:
    assert "Judged scores" not in page_of(client, vera, scored)
    judge_all(scored, ed)
    Job.objects.filter(kind="judge").update(step=7, total_steps=10)
    text = page_of(client, vera, scored)
    assert "7 of 10 answers have a verdict" in text
    assert "Judged scores" in text
    rows = client.get(scored.get_absolute_url()).context["score_rows"]
    assert [(row.base, row.adapter) for row in rows if row.metric.name == JUDGE] == [(0.0, 4 / 6)]


def test_without_a_judge_nothing_is_sent(
    client: Client, ed: User, scored: TrainingRun, settings: Settings
) -> None:
    settings.JUDGE = Endpoint("", "")
    assert "No judge is configured" in page_of(client, ed, scored)
    client.post(address(scored), CONSENT)
    assert not Job.objects.filter(kind="judge").exists()


def test_answers_are_hidden_until_the_study_has_ended(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel, run: TrainingRun
) -> None:
    working = make_study(project, dataset, base_model)
    client.force_login(ed)
    for scope in (working, working.runs()[0], run):
        assert client.get(address(scope)).status_code == 302
        assert client.post(address(scope), CONSENT).status_code == 302
    assert not Job.objects.filter(kind="judge").exists()


def test_a_run_of_a_study_is_judged_with_the_whole_study(client: Client, ed: User, study: Study) -> None:
    run = study.runs()[0]
    assert study.get_absolute_url() in page_of(client, ed, run)
    client.post(address(run), CONSENT)
    judged = Job.objects.get(kind="judge").judged_evaluations
    assert set(judged.all()) == set(evaluations_of(study))


def test_judge_comparison_keeps_the_verdict_of_the_study(
    client: Client, vera: User, ed: User, study: Study
) -> None:
    before = study.result
    EvaluationItem.objects.filter(evaluation__subject="adapter", row__lte=30).update(output="e")
    judge_all(study, ed)
    link = re.search(r'href="(/compare/\?[^"]+metric=judge[^"]+)"', page_of(client, vera, study))
    assert link
    assert client.get(link[1].replace("&amp;", "&")).status_code == 200
    assert Study.objects.get(pk=study.pk).result == before


def test_later_verdicts_are_not_cached(scored: TrainingRun, ed: User) -> None:
    def mean() -> float:
        run = TrainingRun.objects.with_facts().with_scores().get(pk=scored.pk)
        return float(UnsavedStudy.of([run], JUDGE).result.to_dict()["arms"][0]["metric"]["mean"])

    judge_all(scored, ed)
    assert mean() == pytest.approx(4 / 6)
    adapter = evaluations_of(scored).get(subject="adapter")
    write_verdicts(dict.fromkeys(adapter.items.values_list("pk", flat=True), True))
    assert mean() == 1.0


def test_a_comparison_warns_of_two_judges(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, settings: Settings
) -> None:
    runs = []
    for model, rate in (("gpt-test", 1e-4), ("stricter", 2e-4)):
        settings.JUDGE = replace(settings.JUDGE, model=model)
        run = make_run(project, dataset, base_model, by=ed, learning_rate=rate)
        score(publish(run), [1, 1, 0, 0])
        judge_all(run, ed)
        runs.append(TrainingRun.objects.with_facts().with_scores().get(pk=run.pk))
    by_judge, by_match = (warnings(UnsavedStudy.of(runs, metric)) for metric in (JUDGE, "exact_match"))
    assert len(by_judge) == len(by_match) + 1


@pytest.mark.parametrize(("rows", "differing", "is_weak"), [(6, 0, True), (60, 1, False), (60, 20, True)])
def test_page_warns_of_a_weak_agreement_with_votes(
    client: Client,
    ed: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    rows: int,
    differing: int,
    is_weak: bool,
) -> None:
    run = make_run(project, dataset, base_model, by=ed)
    score(publish(run), [row % 2 for row in range(rows)])
    assert "the agreement is unknown" in page_of(client, ed, run)
    judge_all(run, ed)
    items = evaluations_of(run).get(subject="adapter").items.all()
    for place, item in enumerate(items):
        Vote.objects.cast(ed, item, is_right=bool(item.scores[JUDGE]) == (place >= differing))
    text = page_of(client, ed, run)
    assert ("Do not decide by this judge" in text) is is_weak
    assert f"of {rows} answers (95 % interval" in text
