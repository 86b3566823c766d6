"""Asking for the scores of one run again: after a failure or a stop, and never twice."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, ComputeBudget, Evaluation, Job, JobEvent, State, TrainingRun, User
from dashboard.models.compute_use import HOUR
from dashboard.models.rescoring import ReevaluationRefused, reevaluate
from dashboard.models.scoring import expected_scoring_seconds
from tests.conftest import finish
from tests.dashboard.conftest import evaluate

BUTTON = "Score it again"


def scoring_fails(
    adapter: Adapter, code: str = "worker_lost", message: str = "It never came to its end."
) -> Job:
    job = Evaluation.objects.submit(adapter, None)
    return finish(job, State.FAILED, error_code=code, error_message=message)


def ask(client: Client, user: User, adapter: Adapter) -> int:
    client.force_login(user)
    return client.post(reverse("training-run-score", args=[adapter.run_id])).status_code


def page_of(client: Client, user: User, adapter: Adapter) -> str:
    client.force_login(user)
    return client.get(adapter.run.get_absolute_url()).content.decode()


def test_what_failed_is_queued_as_it_was_at_first(client: Client, mara: User, adapter: Adapter) -> None:
    failed = scoring_fails(adapter)
    assert ask(client, mara, adapter) == 302
    again = Job.objects.get(kind="evaluate", state=State.QUEUED)
    assert (again.spec, again.created_by) == (failed.spec, mara)
    assert sorted(again.evaluations.values_list("subject", "adapter", "split")) == sorted(
        failed.evaluations.values_list("subject", "adapter", "split")
    )


def test_what_was_stopped_is_queued_again_too(client: Client, ed: User, adapter: Adapter) -> None:
    Evaluation.objects.submit(adapter, None).request_cancel(ed)
    assert ask(client, ed, adapter) == 302
    assert Job.objects.filter(kind="evaluate", state=State.QUEUED).count() == 1


def test_a_second_press_queues_nothing_more(client: Client, ed: User, adapter: Adapter) -> None:
    scoring_fails(adapter)
    ask(client, ed, adapter)
    ask(client, ed, adapter)
    assert "is being scored already" in page_of(client, ed, adapter)
    assert Job.objects.filter(kind="evaluate").count() == 2


def test_what_has_scores_is_not_scored_again(client: Client, ed: User, adapter: Adapter) -> None:
    evaluate(adapter, 0.1, 0.9)
    ask(client, ed, adapter)
    assert "has its scores already" in page_of(client, ed, adapter)
    assert Job.objects.filter(kind="evaluate").count() == 1


def test_a_run_without_an_adapter_has_nothing_to_score(run: TrainingRun, ed: User) -> None:
    with pytest.raises(ReevaluationRefused, match="It has no adapter"):
        reevaluate(run, ed)


def test_the_page_shows_the_new_scores_as_if_they_were_the_first(
    client: Client, vera: User, ed: User, adapter: Adapter
) -> None:
    scoring_fails(adapter)
    reevaluate(adapter.run, ed)
    job = Job.objects.get(kind="evaluate", state=State.QUEUED)
    for evaluation in job.evaluations.all():
        score = 0.0 if evaluation.subject == Evaluation.Subject.BASE else 0.6
        evaluation.record_result(10, {"exact_match": score}, [])
    finish(job)
    page = page_of(client, vera, adapter)
    assert "+60.0 points" in page
    assert "no scores" not in page
    assert 'data-settled="yes"' in page


def test_the_page_says_what_happened_and_what_helps(client: Client, ed: User, adapter: Adapter) -> None:
    scoring_fails(adapter, message="The work was interrupted 3 times.")
    page = page_of(client, ed, adapter)
    assert "This adapter has no scores" in page
    assert "Scoring failed:" in page
    assert "The work was interrupted 3 times." in page
    assert "If the machine is healthy, score it again." in page
    assert BUTTON in page


def test_the_page_says_that_it_was_stopped(client: Client, ed: User, adapter: Adapter) -> None:
    Evaluation.objects.submit(adapter, None).request_cancel(ed)
    page = page_of(client, ed, adapter)
    assert "Scoring was stopped before its end." in page
    assert BUTTON in page


def test_the_stages_end_where_the_scoring_ended(client: Client, ed: User, adapter: Adapter) -> None:
    scoring_fails(adapter)
    stages = page_of(client, ed, adapter).split('class="stages"')[1].split("</ol>")[0]
    assert stages.count("is-broken") == 1
    assert stages.split("is-broken")[1].split("</li>")[0].count("Evaluating") == 1


def test_a_viewer_reads_the_cause_and_may_not_ask(client: Client, vera: User, adapter: Adapter) -> None:
    scoring_fails(adapter)
    page = page_of(client, vera, adapter)
    assert "This adapter has no scores" in page
    assert BUTTON not in page
    assert ask(client, vera, adapter) == 403
    assert not Job.objects.filter(kind="evaluate", state=State.QUEUED).exists()


def test_it_hides_the_run_from_an_outsider(client: Client, otto: User, adapter: Adapter) -> None:
    scoring_fails(adapter)
    assert ask(client, otto, adapter) == 404


def test_a_visit_asks_for_nothing(client: Client, ed: User, adapter: Adapter) -> None:
    client.force_login(ed)
    assert client.get(reverse("training-run-score", args=[adapter.run_id])).status_code == 405


def test_the_page_of_the_adapter_has_the_same(client: Client, ed: User, vera: User, adapter: Adapter) -> None:
    scoring_fails(adapter)
    client.force_login(ed)
    assert BUTTON in client.get(adapter.get_absolute_url()).content.decode()
    reevaluate(adapter.run, ed)
    page = client.get(adapter.get_absolute_url()).content.decode()
    assert BUTTON not in page
    assert "The evaluation is still running" in page


def test_it_is_refused_where_the_month_has_no_room(client: Client, ed: User, adapter: Adapter) -> None:
    scoring_fails(adapter)
    needed = expected_scoring_seconds(adapter.run)
    assert needed > 0
    ComputeBudget.objects.change(adapter.project, 0.5 * needed / HOUR, None)
    ask(client, ed, adapter)
    assert "can raise the budget" in page_of(client, ed, adapter)
    assert not Job.objects.filter(kind="evaluate", state=State.QUEUED).exists()
    ComputeBudget.objects.change(adapter.project, 100, None)
    ask(client, ed, adapter)
    assert Job.objects.filter(kind="evaluate", state=State.QUEUED).exists()


def test_it_is_refused_where_the_base_model_is_another_one_by_now(ed: User, adapter: Adapter) -> None:
    scoring_fails(adapter)
    adapter.base_model.sha256 = "cd" * 32
    adapter.base_model.save()
    with pytest.raises(ReevaluationRefused, match="has changed since this adapter was trained on it"):
        reevaluate(TrainingRun.objects.get(pk=adapter.run_id), ed)


def test_the_history_names_who_asked(client: Client, ed: User, adapter: Adapter) -> None:
    scoring_fails(adapter)
    ask(client, ed, adapter)
    asked = JobEvent.objects.get(job__state=State.QUEUED, job__kind="evaluate")
    assert (asked.event, asked.actor) == ("submit", "ed@example.org")
