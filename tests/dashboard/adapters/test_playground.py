"""The playground's page and form, and what its stream says before a model is ready."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.html import escape

from dashboard.models import (
    Adapter,
    BaseModel,
    Dataset,
    EvaluationItem,
    Job,
    Project,
    State,
    TrainingRun,
    User,
)
from dashboard.presenters.playground import playground, study_adapters, try_url
from tests.conftest import finish, make_base_model, make_dataset, make_run
from tests.dashboard.conftest import publish
from tests.dashboard.routes import publish_adapter
from tests.dashboard.studies.comparisons import score
from tests.dashboard.studies.factories import TABLE, conclude, make_study, score_first_seed

SLUGS = ("efficient", "mlp", "quality")
FORM = {"prompt": "Hello", "temperature": "0", "max_tokens": "10", "seed": "1"}


@pytest.fixture
def adapter(run: TrainingRun) -> Adapter:
    return publish_adapter(run)


@pytest.fixture
def foreign(other_project: Project, otto: User) -> Adapter:
    base = make_base_model(other_project, "Theirs", "example/theirs")
    return publish_adapter(make_run(other_project, make_dataset(other_project), base, by=otto))


def send(client: Client, route: str = "playground-answer", **values: Any) -> Any:
    return client.post(
        reverse(route), urlencode(FORM | values, doseq=True), content_type="application/x-www-form-urlencoded"
    )


def columns(project: Project, user: User, *wanted: object, base: object = "") -> list[str]:
    shown = playground(project, user, str(base), map(str, wanted))
    return [column.value for column in shown.columns]


def test_it_starts_with_the_base_model_and_the_newest_adapter(
    project: Project, vera: User, adapter: Adapter
) -> None:
    assert columns(project, vera) == ["base", str(adapter.pk)]


def test_the_address_chooses_the_columns(project: Project, vera: User, adapter: Adapter) -> None:
    assert columns(project, vera, adapter.pk, adapter.pk, "base") == [str(adapter.pk), "base"]
    assert columns(project, vera, "base", "none", 999_999) == ["base"]


def test_columns_share_one_base_model(project: Project, vera: User, adapter: Adapter) -> None:
    other = make_base_model(project, "Other", "example/other")
    assert columns(project, vera, adapter.pk, base=other.pk) == ["base"]


def test_no_column_belongs_to_another_project(project: Project, vera: User, foreign: Adapter) -> None:
    assert str(foreign.pk) not in columns(project, vera, foreign.pk)


def test_the_page_offers_every_adapter_of_the_base(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    page = client.get(reverse("playground")).content.decode()
    assert f'<option value="{adapter.pk}"' in page
    assert f'data-column="{adapter.pk}"' in page


def test_a_column_says_that_its_adapter_was_trained_in_4_bits(
    project: Project, vera: User, adapter: Adapter
) -> None:
    assert [column.in_4bit for column in playground(project, vera, "", []).columns] == [False, False]
    run = adapter.run
    run.spec["hyperparameters"]["load_in_4bit"] = True
    run.save()
    assert [column.in_4bit for column in playground(project, vera, "", []).columns] == [False, True]


def test_the_page_offers_answers_beside_and_after_the_trainings(
    client: Client, project: Project, dataset: Dataset, base_model: BaseModel, vera: User, adapter: Adapter
) -> None:
    for name in ("Ash", "Beech"):
        make_run(project, dataset, base_model, name=name)
    client.force_login(vera)
    address = reverse("playground")
    assert "data-trainings" not in client.get(address).text
    Job.objects.filter(training_runs__name__in=["Ash", "Beech"]).update(state="running", eta_seconds=1_500)
    shown = client.get(address)
    assert 'data-trainings="2"' in shown.text
    assert shown.text.count('name="wait"') == 2
    assert "(about 25 min)" in shown.text


def test_without_a_base_model_there_is_nothing_to_try(client: Client, vera: User) -> None:
    client.force_login(vera)
    assert "data-column" not in client.get(reverse("playground")).content.decode()


def test_test_rows_are_offered_with_their_expected_answers(
    project: Project, vera: User, run: TrainingRun
) -> None:
    score(publish(run), [1, 0, 1])
    shown = playground(project, vera, "", [])
    assert [row.row for row in shown.rows] == [1, 2, 3]
    assert all(row.prompt and row.expected for row in shown.rows)


def test_test_rows_come_with_their_system_prompt_and_not_with_several_turns(
    client: Client, vera: User, run: TrainingRun
) -> None:
    score(publish(run), [1, 0, 1])
    EvaluationItem.objects.filter(row=1).update(system="Answer in one word.")
    EvaluationItem.objects.filter(row=2).update(system=None)
    client.force_login(vera)
    shown = client.get(reverse("playground"))
    assert [row.row for row in shown.context["playground"].rows] == [1, 3]
    assert 'data-system="Answer in one word."' in shown.text


def test_test_rows_of_a_study_are_hidden_until_it_has_ended(
    client: Client, project: Project, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    study = make_study(project, dataset, base_model, by=ed, slugs=SLUGS)
    score_first_seed(study, TABLE)
    assert study_adapters(study)
    assert playground(project, ed, "", []).rows == []
    assert "/playground/?column" not in client.get(study.get_absolute_url()).content.decode()
    conclude(study, TABLE)
    assert playground(project, ed, "", []).rows
    page = client.get(study.get_absolute_url()).content.decode()
    assert escape(try_url(study_adapters(study))) in page
    assert len(study_adapters(study)) == 3


def test_try_it_takes_adapters_of_one_base(adapter: Adapter, foreign: Adapter) -> None:
    assert try_url([adapter, foreign]) == f"/playground/?column=base&column={adapter.pk}"
    assert try_url([]) == ""


def test_pages_of_adapter_run_and_comparison_link_to_its_columns(
    client: Client, project: Project, dataset: Dataset, base_model: BaseModel, vera: User
) -> None:
    first, second = (publish(make_run(project, dataset, base_model, name=name)) for name in ("Ash", "Beech"))
    compared = f"{reverse('compare')}?runs={first.run_id},{second.run_id}"
    one, both = ("base", first.pk), ("base", first.pk, second.pk)
    client.force_login(vera)
    for address, columns in (
        (first.get_absolute_url(), one),
        (first.run.get_absolute_url(), one),
        (compared, both),
    ):
        query = urlencode({"column": columns}, doseq=True)
        assert f'href="{escape(reverse("playground"))}?{escape(query)}"' in client.get(address).text


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": ""},
        {"prompt": "x" * 100_001},
        {"temperature": "3"},
        {"temperature": "nan"},
        {"max_tokens": "0"},
        {"seed": "-1"},
        {"column": ["base"] * 5},
        {"column": []},
        {"column": "999999"},
        {"base": "999999"},
    ],
)
def test_a_wrong_prompt_is_refused(
    client: Client, vera: User, adapter: Adapter, wrong: dict[str, Any]
) -> None:
    client.force_login(vera)
    values = {"base": adapter.base_model_id, "column": "base"} | wrong
    assert send(client, **values).status_code == 422
    assert not Job.objects.filter(kind=Job.Kind.SERVE).exists()


@pytest.mark.django_db(transaction=True)
def test_a_model_without_memory_says_so(client: Client, vera: User, adapter: Adapter) -> None:
    base = adapter.base_model
    finish(base.serve(), State.FAILED, error_code="out_of_memory", error_message="Too little memory.")
    client.force_login(vera)
    started = send(client, "playground-start", base=base.pk)
    assert (started.status_code, started.json()["error"]) == (422, "out_of_memory")


def test_models_of_another_project_are_refused(client: Client, vera: User, foreign: Adapter) -> None:
    client.force_login(vera)
    assert send(client, base=foreign.base_model_id, column=foreign.pk).status_code == 422
    assert send(client, "playground-start", base=foreign.base_model_id).status_code == 422
    assert not Job.objects.filter(kind=Job.Kind.SERVE).exists()
