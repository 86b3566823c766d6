"""Further arms of the study form: a config with its own rank, alpha, dropout or learning rate."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from dashboard.models import BaseModel, Dataset, Project, Study, TargetModuleConfig, User
from tests.conftest import make_base_model
from tests.dashboard.studies.plan.test_study_create import PLAN, URL, entered, pks
from tests.dashboard.training.test_training_run_create import model_with_gaps
from workers.forecasting.automatic import automatic_learning_rate


def rows(*further: dict[str, Any]) -> dict[str, Any]:
    """Return rows as a browser sends them."""
    sent: dict[str, Any] = {"more-TOTAL_FORMS": len(further), "more-INITIAL_FORMS": 0}
    for place, row in enumerate(further):
        blank = dict.fromkeys(("config", "r", "lora_alpha", "lora_dropout", "learning_rate", "name"), "")
        sent |= {f"more-{place}-{name}": value for name, value in {**blank, **row}.items()}
    return sent


@pytest.fixture
def values(dataset: Dataset, base_model: BaseModel) -> dict[str, Any]:
    return entered(dataset, base_model)


def arm_settings(study: Study) -> dict[str, tuple[Any, ...]]:
    """Return name -> rank, alpha, dropout and learning rate."""
    names = ("r", "lora_alpha", "lora_dropout", "learning_rate")
    return {arm.name: tuple(arm.hyperparameters[name] for name in names) for arm in study.arms.all()}


def test_names_list_the_differing_settings(client: Client, ed: User, values: dict[str, Any]) -> None:
    (efficient,) = pks("efficient")
    client.force_login(ed)
    further = rows(
        {"config": efficient, "r": "8"},
        {"config": efficient, "r": "8", "lora_alpha": "8"},
        {"config": efficient, "lora_dropout": "0.1", "learning_rate": "0.002"},
        {"config": efficient, "r": "16", "name": "wide"},
    )
    assert client.post(URL, values | further).status_code == 302
    study = Study.objects.get()
    census = study.base_model.load_census()
    automatic = automatic_learning_rate(census.hidden_size, census.model_type)
    assert arm_settings(study) == {
        "Efficient": (4, 8, 0.0, automatic),
        "Quality": (4, 8, 0.0, automatic),
        "Efficient, r 8": (8, 16, 0.0, automatic),
        "Efficient, r 8, alpha 8": (8, 8, 0.0, automatic),
        "Efficient, dropout 0.1, rate 0.002": (4, 8, 0.1, 2e-3),
        "wide": (16, 32, 0.0, automatic),
    }


def test_further_arm_can_be_the_reference(client: Client, ed: User, values: dict[str, Any]) -> None:
    (efficient,) = pks("efficient")
    client.force_login(ed)
    further = rows({"config": efficient, "r": "2"}, {}, {"config": efficient, "r": "8"})
    client.post(URL, values | further | {"configs": [], "compared_with": "more-2"})
    study = Study.objects.get()
    assert list(arm_settings(study)) == ["Efficient, r 2", "Efficient, r 8"], (
        "an empty row counts for nothing"
    )
    assert study.reference == "Efficient, r 8"


@pytest.mark.parametrize(
    ("row", "changes", "words"),
    [
        ({"r": "8"}, {}, "Further arm 1, Target modules: Choose the target modules of this arm"),
        ({"config": "efficient", "r": "0"}, {}, "Enter a whole number from 1 to 512."),
        ({"config": "efficient", "learning_rate": "5"}, {}, "Enter a number from 0.0000001 to 0.1."),
        ({"config": "efficient", "name": "n" * 121}, {}, "at most 120 characters"),
        ({"config": "9" * 30}, {}, "There is no such preset in this project."),
        ({"config": "efficient"}, {}, "Two arms are called"),
        ({"config": "efficient", "r": "8", "name": "base"}, {}, "is the name of the untrained model"),
        ({"config": "efficient", "r": "8"}, {"budget": "equal-parameters"}, "Equal parameters set the rank"),
        (
            {"config": "efficient", "learning_rate": "0.001"},
            {"learning_rates": "0.001 0.0001"},
            "Every arm tries the rates",
        ),
        ({"config": "efficient", "r": "8"}, {"compared_with": "more-3"}, "as the reference"),
    ],
)
def test_invalid_rows_are_refused(
    client: Client, ed: User, values: dict[str, Any], row: dict[str, str], changes: dict[str, str], words: str
) -> None:
    if row.get("config") == "efficient":
        row = {**row, "config": str(pks("efficient")[0])}
    client.force_login(ed)
    answer = client.post(URL, values | rows(row) | changes)
    assert answer.status_code == 422
    assert words in answer.content.decode()
    assert not Study.objects.exists()


def test_refused_rows_keep_their_input(client: Client, ed: User, values: dict[str, Any]) -> None:
    client.force_login(ed)
    further = rows({"config": pks("efficient")[0], "r": "0", "name": "mine"})
    page = client.post(URL, values | further).content.decode()
    assert 'name="more-0-name" value="mine"' in page
    assert 'name="more-0-r" value="0"' in page


@pytest.mark.parametrize("count", ["-1", "99999999999", "²"])
def test_malformed_number_of_rows_is_ignored(
    client: Client, ed: User, values: dict[str, Any], count: str
) -> None:
    client.force_login(ed)
    nonsense = {"more-TOTAL_FORMS": count, "more-INITIAL_FORMS": "0"}
    assert client.get(PLAN, values | nonsense).status_code == 200
    assert client.post(URL, values | nonsense).status_code in (302, 422)


def test_config_of_another_project_is_refused(
    client: Client, ed: User, other_project: Project, values: dict[str, Any]
) -> None:
    from workers.target_modules.custom import Selection

    theirs = TargetModuleConfig.objects.compose(
        project=other_project, by=None, name="Theirs", selection=Selection(("o_proj",))
    )
    client.force_login(ed)
    page = client.post(URL, values | rows({"config": theirs.pk, "r": "8"})).content.decode()
    assert "There is no such preset in this project." in page
    assert "Theirs" not in page


def test_each_warning_is_confirmed_once(client: Client, ed: User, dataset: Dataset, project: Project) -> None:
    base_model = model_with_gaps(make_base_model(project, "Gaps", "example/gaps"))
    client.force_login(ed)
    sent = entered(dataset, base_model) | rows({"config": pks("efficient")[0], "r": "8"})
    plan = client.get(PLAN, sent).context["study_plan"].to_confirm
    assert len(plan.confirmations) == len(set(plan.confirmations)) > 0
    assert client.post(URL, sent).status_code == 422
    assert client.post(URL, {**sent, "confirmed": plan.confirmation_key}).status_code == 302
