"""The study form: launch, refusals, prefilled values, and the plan beside it."""

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
    Project,
    Study,
    TargetModuleConfig,
    TrainingRun,
    User,
)
from tests.conftest import make_base_model, make_dataset, make_run
from tests.dashboard.training.test_training_run_create import entered as run_entered
from tests.dashboard.training.test_training_run_create import model_with_gaps

URL = reverse("study-create")
PLAN = reverse("study-plan")
ARMS = reverse("study-arms")


def pks(*slugs: str) -> list[int]:
    """Return the ids of presets."""
    return [TargetModuleConfig.objects.get(slug=slug).pk for slug in slugs]


def entered(dataset: Dataset, base_model: BaseModel, /, **changes: Any) -> dict[str, Any]:
    """Return the form as a browser sends it, with some fields changed."""
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
        "length": "steps",
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
    """Send the form as Ed, with some fields changed."""
    client.force_login(ed)
    return lambda **changes: client.post(URL, entered(dataset, base_model, **changes))


@pytest.fixture
def plan_text(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> Callable[..., str]:
    """Return the text of the plan beside the form, with some fields changed."""
    client.force_login(ed)

    def text(**changes: Any) -> str:
        page = client.get(PLAN, entered(dataset, base_model, **changes)).content.decode()
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))

    return text


def test_form_starts_a_study(send: Send) -> None:
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


def test_form_without_a_dataset_offers_the_sample(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert f'action="{reverse("dataset-sample")}"' in client.get(URL).content.decode()


def test_double_click_starts_one_study(send: Send) -> None:
    key = str(uuid.uuid4())
    first, second = send(idempotency_key=key), send(idempotency_key=key)
    assert first["Location"] == second["Location"]
    assert Study.objects.count() == 1


def test_equal_runs_are_used_unless_the_form_asks_to_train_again(send: Send) -> None:
    send()
    send(again="on")
    assert list(Study.objects.order_by("pk").values_list("reuse", flat=True)) == [True, False]


def test_several_rates_start_a_search(send: Send) -> None:
    send(learning_rates="0.001, 5e-4 0.0001")
    study = Study.objects.get()
    assert study.learning_rates == [0.0001, 0.0005, 0.001]
    assert {run.rung for run in study.runs()} == {0}


@pytest.mark.parametrize(("metric", "stored"), [("regex", r"total: (\d+)"), ("exact_match", "")])
def test_pattern_is_stored_for_the_metric_regex_only(send: Send, metric: str, stored: str) -> None:
    send(metric=metric, pattern=r"total: (\d+)")
    assert Study.objects.get().pattern == stored


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"configs": []}, "configs"),
        ({"configs": ["9" * 40]}, "configs"),
        ({"configs": ["a\0b"]}, "configs"),
        ({"compared_with": "9" * 40}, "compared_with"),
        ({"dataset_version": "9" * 40}, "dataset_version"),
        ({"base_model": ""}, "base_model"),
        ({"idempotency_key": "x"}, "idempotency_key"),
        ({"seeds": "9" * 400}, "seeds"),
        ({"seeds": "many"}, "seeds"),
        ({"margin": "nan"}, "margin"),
        ({"test_rows": "0"}, "test_rows"),
        ({"learning_rates": "fast"}, "learning_rates"),
        ({"learning_rates": "nan"}, "learning_rates"),
        ({"learning_rates": "0.1\0"}, "learning_rates"),
        ({"learning_rates": "0.001 0.001"}, "learning_rates"),
        ({"metric": "regex"}, "pattern"),
        ({"metric": "regex", "pattern": "(a"}, "pattern"),
        ({"metric": "beauty"}, "metric"),
        ({"budget": "free"}, "budget"),
        ({"r": "0"}, "r"),
        ({"max_steps": ""}, "max_steps"),
        ({"max_length": "4096"}, "max_length"),
    ],
)
def test_invalid_fields_are_refused_and_the_input_is_kept(
    send: Send, changes: dict[str, Any], field: str
) -> None:
    answer = send(name="My own name", **changes)
    assert answer.status_code == 422
    assert field in answer.context["form"].errors
    assert "My own name" in answer.content.decode()
    assert not Study.objects.exists()


def test_rows_of_another_project_are_refused(send: Send, other_project: Project) -> None:
    theirs = make_base_model(other_project, "Theirs", "example/theirs")
    dataset = make_dataset(other_project, "Secret")
    version = dataset.newest_ready()
    assert version
    answer = send(dataset_version=version.pk, base_model=theirs.pk)
    assert answer.status_code == 422
    assert "Secret" not in answer.content.decode()


def test_warnings_must_be_accepted(client: Client, ed: User, dataset: Dataset, base_model: BaseModel) -> None:
    client.force_login(ed)
    values = entered(dataset, model_with_gaps(base_model))
    for ticked in ("", "yes"):
        page = client.post(URL, {**values, "confirmed": ticked})
        assert page.status_code == 422
        assert b"Read the warnings beside this form and accept them." in page.content
    key = re.search(r'name="confirmed"[^>]*value="(\w+)"', page.content.decode())
    assert key
    assert client.post(URL, {**values, "confirmed": key.group(1)}).status_code == 302
    assert Study.objects.get().confirmed_by == ed


# Prefilled values


def test_form_starts_with_the_default_plan(client: Client, ed: User, dataset: Dataset) -> None:
    client.force_login(ed)
    form = client.get(URL).context["form"]
    assert [form[name].value() for name in ("seeds", "margin", "test_rows")] == [5, "3", 1000]


def test_all_presets_of_the_model_are_preselected(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel
) -> None:
    client.force_login(ed)
    page = client.get(URL, {"base_model": base_model.pk}).content.decode()
    assert len(re.findall(r'name="configs"[^>]*checked', page)) == 6
    assert f'value="{dataset.newest_ready().pk}" selected' in page  # type: ignore[union-attr]


def test_preset_without_modules_in_the_model_is_disabled(
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


def test_fine_tune_form_prefills_the_study_form(
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


def test_run_prefills_the_study_form(
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
        {"also": "9" * 40},
    ],
)
def test_malformed_queries_open_the_form(
    client: Client, ed: User, dataset: Dataset, base_model: BaseModel, query: dict[str, str]
) -> None:
    client.force_login(ed)
    answer = client.get(URL, query)
    assert answer.status_code == 200
    assert "<b>" not in answer.content.decode()


# The plan


def test_plan_shows_runs_rank_and_parameters(plan_text: Callable[..., str]) -> None:
    text = plan_text()
    assert "6 = 2 arms × 3 seeds" in text
    assert "Efficient 4 8 " in text
    assert "times the parameters of the smallest" in text
    assert "Computing time, predicted about" in text
    assert "Disk at most" in text
    assert not TrainingRun.objects.exists()


def test_plan_shows_passes_over_the_training_rows(plan_text: Callable[..., str]) -> None:
    assert "Each run reads 8 of 16 training rows 1 step × 8 rows" in plan_text(max_steps="1")
    assert "Each run reads each of 16 training rows 2.5 times on average 5 steps × 8 rows" in plan_text(
        max_steps="5"
    )


def test_plan_counts_the_runs_of_a_search(plan_text: Callable[..., str]) -> None:
    # 4 rates, then 2, in both arms.
    assert "plus 12 short runs" in plan_text(learning_rates="0.0001 0.0002 0.0004 0.0008")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"configs": []}, "Tick at least two arms"),
        ({"dataset_version": ""}, "Choose a dataset"),
        ({"base_model": ""}, "Choose a base model"),
        ({"learning_rates": "x", "seeds": "-", "margin": "?"}, "Start study"),
    ],
)
def test_button_names_the_missing_choice(
    plan_text: Callable[..., str], changes: dict[str, Any], words: str
) -> None:
    assert words in plan_text(**changes)
