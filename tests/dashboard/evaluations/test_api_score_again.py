"""Re-evaluation of a run or a study over the API."""

from __future__ import annotations

from typing import Any

from django.test import Client

from dashboard.models import Adapter, ComputeBudget, Job, Project, State, Study, User
from tests.conftest import finish
from tests.dashboard.evaluations.test_evaluation_score_again import evaluation_fails
from tests.dashboard.refusals import refusal
from tests.dashboard.studies.test_study_score_again import study as study
from tests.dashboard.studies.test_study_score_again import with_failed_evaluation

RUNS, STUDIES = "/api/v1/runs", "/api/v1/studies"


def score(api: Client, address: str, key: str = "") -> Any:
    return api.post(f"{address}/score", headers={"Idempotency-Key": key} if key else {})


def waiting() -> int:
    return Job.objects.filter(kind="evaluate", state=State.QUEUED).count()


def test_a_run_is_reevaluated(api: Client, adapter: Adapter, ed: User) -> None:
    evaluation_fails(adapter)
    address = f"{RUNS}/{adapter.run_id}"
    answer = score(api, address)
    assert answer.status_code == 202
    assert answer.json() == api.get(address).json()
    states = [one["state"] for one in api.get(f"{address}/evaluations").json()["data"]]
    assert sorted(states) == ["failed", "failed", "queued", "queued"]
    assert Job.objects.get(kind="evaluate", state=State.QUEUED).created_by == ed


def test_scores_that_exist_or_are_to_come_are_refused(api: Client, adapter: Adapter) -> None:
    evaluation_fails(adapter)
    score(api, f"{RUNS}/{adapter.run_id}")
    problem = refusal(score(api, f"{RUNS}/{adapter.run_id}"), 409)
    assert problem["code"] == "not_scorable"
    finish(Job.objects.get(kind="evaluate", state=State.QUEUED))
    assert refusal(score(api, f"{RUNS}/{adapter.run_id}"), 409)["code"] == "not_scorable"


def test_a_repeated_idempotency_key_queues_nothing(api: Client, adapter: Adapter) -> None:
    evaluation_fails(adapter)
    for _time in range(2):
        assert score(api, f"{RUNS}/{adapter.run_id}", "again").status_code == 202
    assert waiting() == 1
    finish(Job.objects.get(kind="evaluate", state=State.QUEUED), State.FAILED)
    assert score(api, f"{RUNS}/{adapter.run_id}", "again").status_code == 202
    assert waiting() == 0


def test_a_study_is_reevaluated(api: Client, study: Study) -> None:
    with_failed_evaluation(study)
    answer = score(api, f"{STUDIES}/{study.pk}")
    assert (answer.status_code, answer.json()["state"]) == (202, "running")
    assert answer.json() == api.get(f"{STUDIES}/{study.pk}").json()
    assert waiting() == 1
    assert refusal(score(api, f"{STUDIES}/{study.pk}"), 409)["code"] == "not_scorable"


def test_the_compute_budget_limits_it(api: Client, adapter: Adapter, project: Project) -> None:
    evaluation_fails(adapter)
    ComputeBudget.objects.change(project, 0, None)
    assert refusal(score(api, f"{RUNS}/{adapter.run_id}"), 409)["code"] == "over_budget"
    assert waiting() == 0
