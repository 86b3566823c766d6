"""All hyperparameters appear in form, API schema, clone, retry and settings table."""

from __future__ import annotations

import dataclasses

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.api.choices import HyperparametersIn
from dashboard.forms.training.training_runs import TrainingRunForm, initial_from
from dashboard.models import BaseModel, Dataset, Project, TrainingRun, User
from dashboard.views.training.training_runs import settings_of
from tests.conftest import make_run
from workers.contract.hyperparameters import SETTINGS, Hyperparameters

NAMES = [field.name for field in dataclasses.fields(Hyperparameters)]


def test_each_has_label_and_explanation() -> None:
    assert list(SETTINGS) == NAMES
    assert all(setting.label and setting.explanation for setting in SETTINGS.values())


def test_the_form_has_all(ed: User, project: Project) -> None:
    form = TrainingRunForm(caller=ed, project=project, initial={})
    assert {name: form[name].label for name in NAMES} == {
        name: setting.label for name, setting in SETTINGS.items()
    }


def test_the_api_has_all() -> None:
    assert list(HyperparametersIn.model_fields) == ["length", *NAMES]


@pytest.mark.parametrize("changes", [{}, {"max_length": 32}], ids=["clone", "retry"])
def test_clone_and_retry_keep_all(
    client: Client,
    ed: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    changes: dict[str, int],
) -> None:
    run = make_run(project, dataset, base_model, by=ed, weight_decay=0.1, max_grad_norm=0.5)
    client.force_login(ed)
    form = client.get(reverse("training-run-create"), {"clone": run.pk, **changes}).context["form"]
    sent = {name: form[name].value() for name in form.fields if form[name].value() is not None}
    client.post(reverse("training-run-create"), sent)
    copy = TrainingRun.objects.exclude(pk=run.pk).get()
    assert copy.hyperparameters == {**run.hyperparameters, **changes}
    assert set(NAMES) - set(initial_from(run)) == {"num_train_epochs"}


def test_the_settings_table_has_all(run: TrainingRun) -> None:
    unset = {name for name, value in run.hyperparameters.items() if value is None}
    assert {row["name"] for row in settings_of(run)} == set(NAMES) - unset


def test_the_settings_table_writes_a_choice_by_its_label(run: TrainingRun) -> None:
    values = {row["name"]: row["value"] for row in settings_of(run)}
    assert values["autocast_adapter_dtype"] == "float32 (most precise)"
    assert values["use_dora"] == "no"
