"""Forgetting of a run: on its page, on the adapter's, in comparisons, and over the API."""

from __future__ import annotations

import csv

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, Dataset, Evaluation, Project, User
from tests.conftest import make_run
from tests.dashboard.conftest import api_client, publish
from tests.dashboard.studies.comparisons import score

QUESTIONS = {"version": 1, "sha256": "ab" * 32, "choices": 4}
RIGHT_OF_72 = {"base": 45, "adapter": 42}


@pytest.fixture
def adapter(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Adapter:
    """An adapter that answers three general questions fewer than its base model, and was just scored."""
    adapter = publish(make_run(project, dataset, base_model, by=ed, name="Calm"))
    score(adapter, [1.0] * 6 + [0.0] * 2)
    for evaluation in adapter.run.evaluations.all():
        right = RIGHT_OF_72[evaluation.subject]
        evaluation.metrics["general_loss"] = 3.0 if evaluation.subject == "base" else 3.25
        evaluation.metrics["general_accuracy"] = right / 72
        evaluation.general_questions = {**QUESTIONS, "marks": [1] * right + [0] * (72 - right)}
        evaluation.save()
    return adapter


def section(client: Client, user: User, url: str, name: str) -> str:
    """The card with the heading of this id."""
    client.force_login(user)
    answer = client.get(url)
    assert answer.status_code == 200
    return answer.content.decode().split(f'id="{name}"')[1].split("</section>")[0]


@pytest.mark.parametrize("page", ["run", "adapter"])
def test_run_and_adapter_page_show_loss_and_questions(
    client: Client, vera: User, adapter: Adapter, page: str
) -> None:
    url = (adapter.run if page == "run" else adapter).get_absolute_url()
    part = section(client, vera, url, "forgetting")
    for text in ("3.250", "+0.250", "58.3 %", "62.5 %", "-4.2 points", "95 % interval"):
        assert text in part


def test_missing_questions_show_dashes(client: Client, vera: User, adapter: Adapter) -> None:
    Evaluation.objects.update(general_questions={})
    part = section(client, vera, adapter.run.get_absolute_url(), "forgetting")
    assert "+0.250" in part
    assert part.count("–") >= 2
    assert "did not include general questions" in part


def test_equal_base_evaluations_make_one_row(
    client: Client, vera: User, ed: User, adapter: Adapter, dataset: Dataset
) -> None:
    other = publish(make_run(adapter.project, dataset, adapter.base_model, by=ed, learning_rate=3e-4))
    score(other, [1.0] * 8)
    for evaluation in other.run.evaluations.all():
        twin = adapter.run.evaluations.get(subject=evaluation.subject)
        evaluation.metrics |= {"general_loss": twin.metrics["general_loss"]}
        evaluation.general_questions = twin.general_questions
        evaluation.save()
    url = f"{reverse('compare')}?runs={adapter.run_id},{other.run_id}"
    part = section(client, vera, url, "study-forgetting")
    assert part.count("-4.2 points") == 2
    assert part.count("Base model") == 1


def test_files_of_a_comparison_contain_forgetting(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    name = f"Calm #{adapter.run_id}"
    told = client.get(f"{reverse('compare-json')}?runs={adapter.run_id}").json()["forgetting"][name]
    assert told["general_loss_rise"] == pytest.approx(0.25)
    assert told["general_accuracy_change"]["mean"] == pytest.approx(-3 / 72)
    text = client.get(f"{reverse('compare-csv')}?runs={adapter.run_id}").content.decode()
    values = {row["measure"]: row["value"] for row in csv.DictReader(text.splitlines())}
    assert float(values["general_accuracy change mean"]) == pytest.approx(-3 / 72)
    assert float(values["general_loss"]) == pytest.approx(3.25)


def test_the_api_has_forgetting_of_adapters_only(project: Project, vera: User, adapter: Adapter) -> None:
    api = api_client(project, vera)
    told = {
        one["subject"]: one for one in api.get(f"/api/v1/runs/{adapter.run_id}/evaluations").json()["data"]
    }
    assert told["base"]["forgetting"] is None
    assert told["adapter"]["forgetting"]["general_accuracy_change"]["mean"] == pytest.approx(-3 / 72)
    assert told["adapter"]["general_questions"]["sha256"] == QUESTIONS["sha256"]
    assert sum(told["base"]["general_questions"]["marks"]) == 45


def test_eval_json_contains_the_marks(adapter: Adapter) -> None:
    report = {one["subject"]: one for one in adapter.evaluation_report()}
    assert sum(report["adapter"]["general_questions"]["marks"]) == 42
