"""The page of an adapter: lineage, files, scores, loading code and stage."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, Dataset, Project, User
from tests.conftest import make_run
from tests.dashboard.conftest import evaluate, publish


def page(client: Client, user: User, adapter: Adapter) -> str:
    client.force_login(user)
    return client.get(reverse("adapter-detail", args=[adapter.pk])).content.decode()


def test_it_names_its_dataset_run_and_base(client: Client, vera: User, adapter: Adapter) -> None:
    text = page(client, vera, adapter)
    for one in (adapter.run, adapter.run.dataset_version, adapter.base_model):
        assert f'href="{one.get_absolute_url()}"' in text
    assert "example/tiny" in text


def test_it_lists_every_file_with_its_checksum(client: Client, vera: User, adapter: Adapter) -> None:
    text = page(client, vera, adapter)
    for name, digest in adapter.files.items():
        assert name in text
        assert digest in text


def test_it_shows_how_to_load_it(client: Client, vera: User, adapter: Adapter) -> None:
    text = page(client, vera, adapter)
    assert "AutoModelForCausalLM.from_pretrained(&quot;example/tiny&quot;)" in text
    assert "PeftModel.from_pretrained(base, &quot;Triage-v1&quot;)" in text


def test_it_shows_base_and_adapter_with_their_difference(
    client: Client, vera: User, adapter: Adapter
) -> None:
    assert "+61.0 points" not in page(client, vera, adapter)
    evaluate(adapter, 0.0, 0.61)
    text = page(client, vera, adapter)
    assert "+61.0 points" in text
    assert "One seed" in text


def test_it_links_to_other_versions(
    client: Client, vera: User, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    first, second = (publish(make_run(project, dataset, base_model, by=ed)) for _time in range(2))
    assert second.version == 2
    assert f'href="{first.get_absolute_url()}"' in page(client, vera, second)


def test_only_a_manager_is_offered_the_stage(client: Client, mara: User, ed: User, adapter: Adapter) -> None:
    stage = reverse("adapter-stage", args=[adapter.pk])
    assert stage in page(client, mara, adapter)
    assert stage not in page(client, ed, adapter)


def test_it_escapes_names(
    client: Client, vera: User, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    run = make_run(project, dataset, base_model, by=ed, name='<script>alert("x")</script>')
    assert "<script>alert" not in page(client, vera, publish(run))
