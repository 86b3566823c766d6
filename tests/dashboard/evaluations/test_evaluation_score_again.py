"""Re-evaluation of one run: after a failure or a cancel, and never twice."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, Evaluation, Job, JobEvent, State, TrainingRun, User
from dashboard.models.studies.re_evaluation import ReevaluationRefused, reevaluate
from tests.conftest import finish
from tests.dashboard.conftest import evaluate


def evaluation_fails(adapter: Adapter, message: str = "It never came to its end.") -> Job:
    job = Evaluation.objects.submit(adapter, None)
    return finish(job, State.FAILED, error_code="worker_lost", error_message=message)


def post(client: Client, user: User, adapter: Adapter) -> int:
    client.force_login(user)
    return client.post(reverse("training-run-score", args=[adapter.run_id])).status_code


def page_of(client: Client, user: User, subject: Adapter | TrainingRun) -> str:
    client.force_login(user)
    return client.get(subject.get_absolute_url()).content.decode()


def button(adapter: Adapter) -> str:
    return f'action="{reverse("training-run-score", args=[adapter.run_id])}"'


def test_a_failed_evaluation_is_queued_with_the_same_spec(
    client: Client, mara: User, adapter: Adapter
) -> None:
    failed = evaluation_fails(adapter)
    assert post(client, mara, adapter) == 302
    again = Job.objects.get(kind="evaluate", state=State.QUEUED)
    assert (again.spec, again.created_by) == (failed.spec, mara)
    assert sorted(again.evaluations.values_list("subject", "adapter", "split")) == sorted(
        failed.evaluations.values_list("subject", "adapter", "split")
    )
    event = JobEvent.objects.get(job=again)
    assert (event.event, event.actor) == ("submit", "mara@example.org")


def test_a_cancelled_evaluation_is_queued_once(client: Client, ed: User, adapter: Adapter) -> None:
    Evaluation.objects.submit(adapter, None).request_cancel(ed)
    for _press in range(2):
        assert post(client, ed, adapter) == 302
    assert Job.objects.filter(kind="evaluate", state=State.QUEUED).count() == 1
    assert Job.objects.filter(kind="evaluate").count() == 2


def test_an_adapter_with_scores_is_refused(ed: User, adapter: Adapter) -> None:
    evaluate(adapter, 0.1, 0.9)
    with pytest.raises(ReevaluationRefused):
        reevaluate(adapter.run, ed)
    assert Job.objects.filter(kind="evaluate").count() == 1


def test_a_run_without_an_adapter_is_refused(run: TrainingRun, ed: User) -> None:
    with pytest.raises(ReevaluationRefused):
        reevaluate(run, ed)


def test_run_and_adapter_page_show_the_reason_and_the_advice(
    client: Client, ed: User, vera: User, adapter: Adapter
) -> None:
    evaluation_fails(adapter, message="The work was interrupted 3 times.")
    for subject in (adapter, adapter.run):
        page = page_of(client, ed, subject)
        assert "The evaluation failed:" in page
        assert "The work was interrupted 3 times." in page
        assert "If the machine is healthy, re-evaluate it." in page
        assert button(adapter) in page
    stages = page_of(client, ed, adapter.run).split('class="stages"')[1].split("</ol>")[0]
    assert stages.count("is-broken") == 1
    assert stages.split("is-broken")[1].split("</li>")[0].count("Evaluating") == 1
    page = page_of(client, vera, adapter.run)
    assert 'id="unscored"' in page
    assert button(adapter) not in page
    reevaluate(adapter.run, ed)
    assert button(adapter) not in page_of(client, ed, adapter)


def test_a_changed_base_model_is_refused(ed: User, adapter: Adapter) -> None:
    evaluation_fails(adapter)
    adapter.base_model.sha256 = "cd" * 32
    adapter.base_model.save()
    with pytest.raises(ReevaluationRefused, match="has changed since this adapter was trained"):
        reevaluate(TrainingRun.objects.get(pk=adapter.run_id), ed)
