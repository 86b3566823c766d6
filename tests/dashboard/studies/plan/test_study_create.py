"""The study form: what it starts, what it says before, what it refuses, and that nothing typed is lost."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.forms.training.hyperparameters import defaults
from dashboard.models import (
    BaseModel,
    Dataset,
    DatasetVersion,
    Evaluation,
    EvaluationItem,
    Project,
    Study,
    TargetModuleConfig,
    TrainingRun,
    User,
)
from tests.conftest import make_base_model, make_dataset, make_run
from tests.dashboard.studies.factories import conclude, make_study
from tests.dashboard.training.test_training_run_create import entered as run_entered
from tests.dashboard.training.test_training_run_create import gappy

URL = reverse("study-create")
PLAN = reverse("study-plan")
ARMS = reverse("study-arms")


def pks(*slugs: str) -> list[int]:
    """Presets by slug."""
    return [TargetModuleConfig.objects.get(slug=slug).pk for slug in slugs]


def entered(dataset: Dataset, base_model: BaseModel, /, **changes: Any) -> dict[str, Any]:
    """The form as a browser sends it, with some fields changed."""
    version = dataset.newest_ready()
    values = {
        "name": "Placement",
        "dataset_version": version.pk if version else "",
        "base_model": base_model.pk,
        "configs": pks("efficient", "quality"),
        "compared_with": pks("quality")[0],
        "seeds": "3",
        "budget": "equal-rank",
        "learning_rates": "",
        "metric": "",
        "margin": "2",
        "test_rows": "200",
        **{name: "" if value is None else str(value) for name, value in defaults().items()},
        "max_steps": "10",
        "r": "4",
        "per_device_train_batch_size": "4",
        "gradient_accumulation_steps": "2",
        "max_length": "64",
        "idempotency_key": str(uuid.uuid4()),
    }
    return {**values, **changes}


Send = Callable[..., Any]


@pytest.fixture
def send(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> Send:
    """Ed sends the form with some fields changed."""
    client.force_login(ed)
    return lambda **changes: client.post(URL, entered(dataset, base_model, **changes))


@pytest.fixture
def look(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> Callable[..., str]:
    """The plan beside the form with some fields changed, as text."""
    client.force_login(ed)

    def text(**changes: Any) -> str:
        page = client.get(PLAN, entered(dataset, base_model, **changes)).content.decode()
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))

    return text


def test_it_starts_a_study_and_opens_its_page(send: Send) -> None:
    answer = send()
    study = Study.objects.get()
    assert answer["Location"] == study.get_absolute_url()
    assert [arm.name for arm in study.arms.all()] == ["Efficient", "Quality"]
    assert (study.seeds, study.reference, study.margin, study.metric) == (
        [1, 2, 3],
        "Quality",
        0.02,
        "token_f1",
    )
    assert {run.hyperparameters["r"] for run in study.runs()} == {4}


def test_it_starts_one_study_for_a_double_click(send: Send) -> None:
    key = str(uuid.uuid4())
    first, second = send(idempotency_key=key), send(idempotency_key=key)
    assert first["Location"] == second["Location"]
    assert Study.objects.count() == 1


def test_it_looks_for_the_rate_where_several_are_named(send: Send) -> None:
    send(learning_rates="0.001, 5e-4 0.0001")
    study = Study.objects.get()
    assert study.learning_rates == [0.0001, 0.0005, 0.001]
    assert {run.rung for run in study.runs()} == {0}


def test_it_scores_by_a_pattern(send: Send) -> None:
    send(metric="regex", pattern=r"total: (\d+)")
    study = Study.objects.get()
    assert (study.metric, study.pattern) == ("regex", r"total: (\d+)")


def test_a_pattern_that_is_hidden_means_nothing(send: Send) -> None:
    send(metric="exact_match", pattern="(")
    assert Study.objects.get().pattern == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"configs": []}, "Tick at least two arms."),
        ({"configs": ["x"]}, "There is no such preset in this project."),
        ({"configs": ["9" * 40]}, "There is no such preset in this project."),
        ({"configs": ["a\0b"]}, "There is no such preset in this project."),
        ({"compared_with": "9" * 40}, "Choose one of the arms as the reference."),
        ({"dataset_version": "9" * 40}, "This dataset is not ready"),
        ({"learning_rates": "0.1\0"}, "Null characters are not allowed."),
        ({"idempotency_key": "x"}, "Enter a valid UUID."),
        ({"seeds": "9" * 400}, "Enter a whole number from 1 to 20."),
        ({"seeds": "0"}, "Enter a whole number from 1 to 20."),
        ({"seeds": "many"}, "Enter a whole number from 1 to 20."),
        ({"margin": "-1"}, "Enter a number from 0 to 100."),
        ({"margin": "nan"}, "Enter a number from 0 to 100."),
        ({"test_rows": "0"}, "Enter a whole number from 1 to 10,000."),
        ({"learning_rates": "fast"}, "is no rate"),
        ({"metric": "regex"}, "that a correct answer contains"),
        ({"metric": "regex", "pattern": "(a"}, "is not a valid regular expression"),
        ({"metric": "regex", "pattern": "x" * 201}, "at most 200 characters"),
        ({"learning_rates": "nan"}, "is no rate"),
        ({"learning_rates": "0.001 0.001"}, "Name up to 8 different rates."),
        ({"metric": "beauty"}, "Metric"),
        ({"budget": "free"}, "Budget"),
        ({"r": "0"}, "Enter a whole number from 1 to 512."),
        ({"max_steps": ""}, "Enter the length of each run."),
        ({"max_length": "4096"}, "reads at most 512 tokens"),
        ({"dataset_version": "x"}, "This dataset is not ready"),
        ({"base_model": ""}, "Choose a base model."),
    ],
)
def test_it_refuses_with_a_sentence_and_keeps_what_was_typed(
    send: Send, changes: dict[str, Any], words: str
) -> None:
    answer = send(name="My own name", **changes)
    page = answer.content.decode()
    assert answer.status_code == 422
    assert words in page.replace("&#x27;", "'")
    assert "My own name" in page
    assert not Study.objects.exists()


def test_what_was_ticked_stays_ticked_after_a_refusal(send: Send) -> None:
    page = send(seeds="0", configs=pks("mlp", "quality")).content.decode()
    ticked = re.findall(r'name="configs"\s+value="(\d+)"[^>]*checked', page)
    assert [int(value) for value in ticked] == pks("mlp", "quality")


def test_things_of_another_project_do_not_exist(send: Send, other_project: Project) -> None:
    theirs = make_base_model(other_project, "Theirs", "example/theirs")
    dataset = make_dataset(other_project, "Secret")
    version = dataset.newest_ready()
    assert version
    answer = send(dataset_version=version.pk, base_model=theirs.pk)
    assert answer.status_code == 422
    assert "Secret" not in answer.content.decode()


def test_what_the_arms_leave_out_is_confirmed_before_a_start(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    values = entered(dataset, gappy(base_model))
    for ticked in ("", "yes"):
        page = client.post(URL, {**values, "confirmed": ticked})
        assert page.status_code == 422
        assert b"Read the warnings beside this form and accept them." in page.content
    key = re.search(r'name="confirmed"[^>]*value="(\w+)"', page.content.decode())
    assert key
    assert client.post(URL, {**values, "confirmed": key.group(1)}).status_code == 302
    assert Study.objects.get().confirmed_by == ed


# What is filled in


def test_every_preset_that_the_model_has_is_ticked(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    page = client.get(URL, {"base_model": base_model.pk}).content.decode()
    assert len(re.findall(r'name="configs"[^>]*checked', page)) == 6
    assert f'value="{dataset.newest_ready().pk}" selected' in page  # type: ignore[union-attr]


def test_a_choice_that_the_model_lacks_is_disabled_with_its_reason(
    client: Client, ed: User, dataset: Dataset, project: Project
) -> None:
    base_model = make_base_model(project, "No MLP", "example/no-mlp")
    assert base_model.census
    groups = [group for group in base_model.census["groups"] if "mlp" not in group["role"]]
    BaseModel.objects.filter(pk=base_model.pk).update(census={**base_model.census, "groups": groups})
    client.force_login(ed)
    page = client.get(ARMS, entered(dataset, base_model)).content.decode()
    assert "is-refused" in page
    assert re.search(r'name="configs"[^>]*disabled', page)


def test_the_fine_tune_form_hands_its_values_over(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    sent = {**run_entered(dataset, base_model, r="7", max_steps="33"), "carry": "yes"}
    answer = client.post(URL, {**sent, "csrfmiddlewaretoken": "secret"})
    query = parse_qs(urlsplit(answer["Location"]).query)
    assert answer.status_code == 302
    assert "csrfmiddlewaretoken" not in query
    page = client.get(answer["Location"]).content.decode()
    assert 'name="r" value="7"' in page
    assert 'name="max_steps" value="33"' in page


def test_a_run_hands_its_settings_over(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    run = make_run(project, dataset, base_model, by=ed, r=5)
    client.force_login(ed)
    assert 'name="r" value="5"' in client.get(URL, {"run": run.pk}).content.decode()
    assert f"{URL}?run={run.pk}" in client.get(run.get_absolute_url()).content.decode()


@pytest.mark.parametrize(
    "query",
    [
        {"run": "x"},
        {"dataset": "²"},
        {"r": "<b>"},
        {"base_model": "none"},
        {"also": "9" * 40},
        {"length": "x"},
    ],
)
def test_a_link_with_nonsense_still_opens_the_form(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel, query: dict[str, str]
) -> None:
    client.force_login(ed)
    answer = client.get(URL, query)
    assert answer.status_code == 200
    assert "<b>" not in answer.content.decode()


# What it says before


def test_the_plan_counts_runs_and_prints_rank_alpha_and_parameters(look: Callable[..., str]) -> None:
    text = look()
    assert "6 = 2 arms × 3 seeds" in text
    assert "Efficient 4 8 " in text
    assert "times the parameters of the smallest" in text
    assert "Computing time, predicted about" in text
    assert "Disk at most" in text


def test_the_plan_says_how_much_of_the_data_each_run_reads(look: Callable[..., str]) -> None:
    assert "Each run reads 8 of 16 training rows 1 step × 8 rows" in look(max_steps="1")
    assert "Each run reads each of 16 training rows 2.5 times on average 5 steps × 8 rows" in look(
        max_steps="5"
    )


def test_the_plan_counts_the_short_runs_of_a_search(look: Callable[..., str]) -> None:
    # 4 rates, then 2, in both arms.
    assert "plus 12 short runs" in look(learning_rates="0.0001 0.0002 0.0004 0.0008")


def test_the_plan_says_that_the_test_rows_are_too_few(look: Callable[..., str]) -> None:
    text = look()
    assert "With 2 test rows" in text
    assert "assumes that two arms disagree on 15.0 % of the rows" in text
    assert "This test split cannot show a difference of 2 points" in text
    # 0.15 * (2.8 / 0.02)^2 for one comparison.
    assert "2,944 test rows would, but this dataset has 2." in text


def test_the_plan_offers_no_more_test_rows_than_a_study_takes(
    look: Callable[..., str], dataset: Dataset
) -> None:
    version = dataset.newest_ready()
    assert isinstance(version, DatasetVersion)
    DatasetVersion.objects.filter(pk=version.pk).update(splits=version.splits | {"test": 60_000})
    assert "Use 2,944 test rows" in look()
    text = look(margin="0.5")
    # 0.15 * (2.8 / 0.005)^2.
    assert "47,094 test rows would, which is more than a study allows." in text
    assert "Use 47,094" not in text


def test_a_group_of_test_rows_counts_as_one(look: Callable[..., str], dataset: Dataset) -> None:
    version = dataset.newest_ready()
    assert isinstance(version, DatasetVersion)
    splits, report = version.splits | {"test": 60_000}, version.report | {"groups": {"test": 30_000}}
    DatasetVersion.objects.filter(pk=version.pk).update(splits=splits)
    assert "come from about" not in look(test_rows=400)
    DatasetVersion.objects.filter(pk=version.pk).update(report=report)
    text = look(test_rows=400)
    assert "They come from about 200 groups" in text
    # As 200 rows would: 2.8 * sqrt(0.15 / 200); and twice the 2,944 rows that stand alone.
    assert "With 400 test rows, the study detects differences of 7.7 points" in text
    assert "Use 5,888 test rows" in text


def test_more_comparisons_need_more_test_rows(look: Callable[..., str]) -> None:
    # Holm over two: 0.15 * ((2.2414 + 0.8416) / 0.02)^2.
    assert "3,565 test rows would" in look(configs=pks("efficient", "mlp", "quality"))


def test_the_plan_takes_the_disagreement_that_was_measured(
    look: Callable[..., str], project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    table: Any = {"base": {0: [0] * 4}, "efficient": {1: [1, 1, 0, 0]}, "quality": {1: [1, 0, 0, 1]}}
    conclude(make_study(project, dataset, base_model, seeds=[1]), table)
    version = dataset.newest_ready()
    assert isinstance(version, DatasetVersion)
    # Differences 0, 1, 0, -1.
    assert EvaluationItem.objects.variance_of_difference(version, "exact_match") == pytest.approx(2 / 3)
    assert EvaluationItem.objects.variance_of_difference(version, "chrf") is None
    assert "disagreement of earlier adapters" in look(metric="exact_match")
    assert Evaluation.objects.count() == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"configs": []}, "Tick at least two arms"),
        ({"dataset_version": ""}, "Choose a dataset"),
        ({"base_model": ""}, "Choose a base model"),
        ({"learning_rates": "x", "seeds": "-", "margin": "?"}, "Start study"),
    ],
)
def test_the_button_names_what_is_missing(
    look: Callable[..., str], changes: dict[str, Any], words: str
) -> None:
    assert words in look(**changes)


def test_no_run_is_started_by_looking(look: Callable[..., str]) -> None:
    look()
    assert not TrainingRun.objects.exists()
