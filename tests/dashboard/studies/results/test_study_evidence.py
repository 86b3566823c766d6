"""Evidence of finished studies where target modules are chosen."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, Project, Study, TargetModuleConfig, User
from dashboard.models.studies.results.evidence import evidence_of, outcomes_by_config, preference
from tests.conftest import make_base_model
from tests.dashboard.studies.factories import ROWS, SEEDS, Table, conclude, make_study


def test_outcomes_are_listed_by_config(study: Study) -> None:
    texts = outcomes_by_config(study.project, study.base_model)
    words = {
        slug: texts[TargetModuleConfig.objects.get(slug=slug).pk] for slug in ("efficient", "mlp", "quality")
    }
    assert words["efficient"] == "In 1 study of this project on this base model: As good within your margin."
    assert words["mlp"].endswith("Worse.")
    assert words["quality"].endswith("Reference.")


def test_outcomes_follow_a_result_that_is_written_anew(study: Study) -> None:
    mlp = TargetModuleConfig.objects.get(slug="mlp").pk
    assert outcomes_by_config(study.project, study.base_model)[mlp].endswith("Worse.")
    for comparison in study.stored_result["comparisons"]:
        comparison["outcome"] = "better"
    study.save(update_fields=["stored_result"])
    assert outcomes_by_config(study.project, study.base_model)[mlp].endswith("Better.")


def test_other_projects_and_base_models_have_no_evidence(
    study: Study, other_project: Project, base_model: BaseModel
) -> None:
    assert evidence_of(other_project) == []
    assert outcomes_by_config(other_project, base_model) == {}
    other = make_base_model(study.project, name="Other", hub_id="example/other")
    assert outcomes_by_config(study.project, other) == {}


def test_target_module_page_links_the_studies(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = client.get(reverse("target-module-config-index")).content.decode()
    assert "In 1 study of this project" in page
    assert study.get_absolute_url() in page


def finished(study: Study, *, best: str, slugs: tuple[str, str] = ("balanced", "quality")) -> Study:
    """Conclude a study of the same project in which `best` answers every row and the other arm none."""
    table: Table = {"base": {0: [0] * ROWS}}
    table |= {slug: {seed: [int(slug == best)] * ROWS for seed in SEEDS} for slug in slugs}
    dataset: Dataset = study.dataset_version.dataset
    return conclude(make_study(study.project, dataset, study.base_model, slugs=slugs), table)


def form_page(client: Client, study: Study) -> str:
    asked = {"base_model": study.base_model_id, "dataset": study.dataset_version.dataset_id}
    return client.get(reverse("training-run-create"), asked).content.decode()


def checked(page: str) -> int:
    """Return the id of the preselected config."""
    inputs = page.split('<input class="form-check-input"')
    (value,) = (
        part.split('value="')[1].split('"')[0] for part in inputs[1:] if "checked" in part.split(">")[0]
    )
    return int(value)


def pk_of(slug: str) -> int:
    return TargetModuleConfig.objects.get(slug=slug).pk


def test_form_preselects_the_majority_recommendation(client: Client, ed: User, study: Study) -> None:
    newest = finished(study, best="balanced")
    finished(study, best="balanced")
    client.force_login(ed)
    page = form_page(client, study)
    assert checked(page) == pk_of("balanced")
    assert "2 of 3 studies of this project on this base model" in page
    assert "so it is preselected" in page
    assert newest.pk < Study.objects.latest("pk").pk
    assert Study.objects.latest("pk").get_absolute_url() in page


def test_contradicting_studies_keep_the_default(client: Client, ed: User, study: Study) -> None:
    finished(study, best="balanced")
    assert preference(study.project, study.base_model_id) is None
    client.force_login(ed)
    page = form_page(client, study)
    assert checked(page) == pk_of("efficient")
    assert "so it is preselected" not in page


def test_reference_better_than_all_arms_counts_as_decided(study: Study) -> None:
    Study.objects.filter(pk=study.pk).delete()
    finished(study, best="quality")
    found = preference(study.project, study.base_model_id)
    assert found is not None
    assert (found.config_id, found.supporting, found.decided) == (pk_of("quality"), 1, 1)
    assert found.sentence.startswith("1 of 1 study of this project")


def test_undecided_study_keeps_the_default(
    project: Project, dataset: Dataset, base_model: BaseModel, study: Study
) -> None:
    Study.objects.filter(pk=study.pk).delete()
    few = {"base": {0: [0, 1]}, "efficient": {1: [1, 1]}, "quality": {1: [0, 1]}}
    conclude(make_study(project, dataset, base_model, seeds=[1]), few)
    assert preference(project, base_model.pk) is None


def test_cloned_run_keeps_its_target_modules(client: Client, ed: User, study: Study) -> None:
    finished(study, best="balanced")
    finished(study, best="balanced")
    run = study.arms.get(name="mlp").final_runs()[0]
    client.force_login(ed)
    page = client.get(reverse("training-run-create"), {"clone": run.pk}).content.decode()
    assert checked(page) == pk_of("mlp")
