"""The list of adapters: rows, stage filter, studies and visibility."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import DjangoAssertNumQueries

from dashboard.models import Adapter, BaseModel, Dataset, Project, Study, User
from tests.conftest import make_run
from tests.dashboard.conftest import evaluate, publish
from tests.dashboard.studies.factories import Table, conclude, end_training, make_study

SEEDS = range(1, 8)


def page(client: Client, user: User, query: str = "") -> str:
    client.force_login(user)
    return client.get(reverse("adapter-index") + query).content.decode()


def test_a_row_shows_stage_size_and_scores(client: Client, vera: User, adapter: Adapter) -> None:
    evaluate(adapter, 0.0, 0.61)
    text = page(client, vera)
    assert f'href="{adapter.get_absolute_url()}"' in text
    for words in ("Triage", "v1", "Draft", "Tiny", "0.0 %", "61.0 %", "4 kB"):
        assert words in text, words


def test_an_adapter_whose_base_scores_another_run_holds_shows_its_own_alone(
    client: Client, vera: User, adapter: Adapter
) -> None:
    evaluate(adapter, 0.5, 0.61)
    adapter.run.evaluations.filter(subject="base").delete()
    assert "→ <strong>" not in page(client, vera)
    assert "<strong>61.0 %</strong>" in page(client, vera)


def test_it_filters_by_stage(client: Client, vera: User, adapter: Adapter) -> None:
    adapter.set_stage("approved")
    assert "Triage" in page(client, vera, "?stage=approved")
    assert "No adapters in this stage" in page(client, vera, "?stage=retired")


@pytest.mark.parametrize(
    "query",
    ["?cursor=x", "?cursor=99999999999999999999", "?stage=%00", "?study=-1"],
)
def test_it_ignores_invalid_parameters(client: Client, vera: User, adapter: Adapter, query: str) -> None:
    assert "Triage" in page(client, vera, query)


def test_an_empty_list_links_to_the_form(client: Client, ed: User) -> None:
    text = page(client, ed)
    assert "No adapters yet" in text
    assert reverse("training-run-create") in text


def test_it_hides_other_projects(client: Client, otto: User, adapter: Adapter) -> None:
    assert "Triage" not in page(client, otto)


def test_more_rows_need_no_more_queries(
    client: Client,
    vera: User,
    ed: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    client.force_login(vera)
    for number in range(3):
        evaluate(publish(make_run(project, dataset, base_model, by=ed, name=f"Run {number}")), 0.1, 0.2)
    with django_assert_max_num_queries(16):
        assert client.get(reverse("adapter-index")).status_code == 200


# Fourteen adapters of studies

TABLE: Table = {
    "base": {0: [0.0] * 9 + [1.0]},
    "efficient": {seed: [1.0] * 5 + [0.0] * 5 for seed in SEEDS},
    "quality": {seed: [1.0] * 9 + [0.0] for seed in SEEDS},
}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel) -> Study:
    """A finished study of two arms and seven seeds; Quality has the higher score."""
    queued = make_study(project, dataset, base_model, seeds=list(SEEDS), reference="efficient")
    return conclude(queued, TABLE)


def links(text: str) -> list[str]:
    """Return the names of the listed adapters."""
    return re.findall(r'class="card-link-title" href="[^"]+">([^<]+)<', text)


def test_a_study_is_one_row_with_the_best_arm_first(
    client: Client, vera: User, adapter: Adapter, study: Study
) -> None:
    text = page(client, vera)
    assert links(text) == ["Placement · quality · seed 1", "Triage"]
    assert "and 13 others of study Placement" in text
    assert "10.0 % → <strong>90.0 %</strong>" in text


def test_approved_adapters_come_first(client: Client, vera: User, study: Study) -> None:
    Adapter.objects.get(name="Placement · efficient · seed 4").set_stage("approved")
    assert links(page(client, vera)) == ["Placement · efficient · seed 4"]
    Adapter.objects.get(name="Placement · efficient · seed 4").set_stage("retired")
    assert links(page(client, vera, f"?study={study.pk}"))[-1] == "Placement · efficient · seed 4"


def test_a_study_lists_all_its_adapters(client: Client, vera: User, adapter: Adapter, study: Study) -> None:
    text = page(client, vera, f"?study={study.pk}")
    arms = [name.split(" · ")[1] for name in links(text)]
    assert arms == ["quality"] * 7 + ["efficient"] * 7
    assert text.count("10.0 % → ") == 14
    assert "others of study" not in text


def test_the_stage_filter_counts_its_own_adapters(client: Client, vera: User, study: Study) -> None:
    for seed in (2, 3):
        Adapter.objects.get(name=f"Placement · quality · seed {seed}").set_stage("approved")
    text = page(client, vera, "?stage=approved")
    assert links(text) == ["Placement · quality · seed 2"]
    assert "and 1 other of study Placement" in text


def test_an_open_study_keeps_the_order_of_arms(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    end_training(make_study(project, dataset, base_model, seeds=[1]).jobs().get())
    text = page(client, vera)
    assert links(text) == ["Placement · efficient · seed 1"]
    assert "→ <strong>" not in text


def test_a_study_s_own_metric_is_shown(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    conclude(make_study(project, dataset, base_model, seeds=list(SEEDS), metric="loss"), TABLE)
    text = page(client, vera)
    assert "Loss on answers" in text
    assert links(text)[0].startswith("Placement · efficient"), "the lower loss"


def test_a_study_of_another_project_is_not_found(client: Client, otto: User, study: Study) -> None:
    client.force_login(otto)
    assert client.get(f"{reverse('adapter-index')}?study={study.pk}").status_code == 404


def test_a_study_of_many_adapters_needs_no_more_queries(
    client: Client, vera: User, study: Study, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    client.force_login(vera)
    for query in ("", f"?study={study.pk}"):
        with django_assert_max_num_queries(22):
            assert client.get(reverse("adapter-index") + query).status_code == 200
