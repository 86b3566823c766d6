"""The list of adapters: rows, stage filter, studies, CSV and visibility."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, Dataset, Project, Study, User
from tests.dashboard.conftest import evaluate
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


def test_it_filters_by_stage(client: Client, vera: User, adapter: Adapter) -> None:
    adapter.set_stage("approved")
    assert "Triage" in page(client, vera, "?stage=approved")
    assert "No matching adapters" in page(client, vera, "?stage=retired")


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


def test_csv_holds_name_and_version(client: Client, vera: User, adapter: Adapter) -> None:
    client.force_login(vera)
    text = client.get("/adapters/adapters.csv?columns=stage").content.decode()
    assert text.splitlines() == ["run,name,version,stage", f"{adapter.run_id},Triage,1,Draft"]


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


def test_a_study_lists_its_adapters(client: Client, vera: User, adapter: Adapter, study: Study) -> None:
    assert len(links(page(client, vera))) == 15
    text = page(client, vera, f"?study={study.pk}&sort=-exact_match")
    arms = [name.split(" · ")[1] for name in links(text)]
    assert arms == ["quality"] * 7 + ["efficient"] * 7
    assert "Only those of the study Placement." in text


def test_an_open_study_shows_no_scores(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    end_training(make_study(project, dataset, base_model, seeds=[1]).jobs().get())
    text = page(client, vera)
    assert len(links(text)) == 2
    assert "→ <strong>" not in text


def test_a_study_s_own_metric_is_shown(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    conclude(make_study(project, dataset, base_model, seeds=list(SEEDS), metric="loss"), TABLE)
    assert "Loss on answers</div>" in page(client, vera)


def test_a_study_of_another_project_is_no_choice(
    client: Client, otto: User, adapter: Adapter, study: Study
) -> None:
    text = page(client, otto, f"?study={study.pk}")
    assert "There is no such study in this project." in text
    assert "Placement" not in text
