"""What finished studies of a project say where its next choice of target modules is made."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Project, Study, TargetModuleConfig, User
from dashboard.models.study_evidence import evidence_of, told_by_config
from tests.conftest import make_base_model
from tests.dashboard.test_study_result import study

__all__ = ["study"]


def test_each_choice_is_told_with_its_outcome(study: Study) -> None:
    told = told_by_config(study.project, study.base_model)
    words = {
        slug: told[TargetModuleConfig.objects.get(slug=slug).pk] for slug in ("efficient", "mlp", "quality")
    }
    assert words["efficient"] == "In 1 study of this project on this base model: As good within your margin."
    assert words["mlp"].endswith("Worse.")
    assert words["quality"].endswith("Reference.")


def test_another_base_model_has_none_of_it(study: Study, project: Project) -> None:
    other = make_base_model(project, name="Other", hub_id="example/other")
    assert told_by_config(project, other) == {}


def test_another_project_has_none_of_it(study: Study, other_project: Project, base_model: BaseModel) -> None:
    assert evidence_of(other_project) == []
    assert told_by_config(other_project, base_model) == {}


def test_the_form_says_it_beside_the_choice(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    page = client.get(
        reverse("training-run-create"),
        {"base_model": study.base_model_id, "dataset": study.dataset_version.dataset_id},
    ).content.decode()
    assert "In 1 study of this project on this base model: As good within your margin." in page


def test_the_page_of_choices_links_the_studies(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = client.get(reverse("target-module-config-index")).content.decode()
    assert "In 1 study of this project" in page
    assert study.get_absolute_url() in page
