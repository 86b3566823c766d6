"""An adapter's page: facts, lineage, files, evaluation, how to load it, and who may change its stage."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, Dataset, Evaluation, Project, State, User
from tests.conftest import finish, make_run
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


def test_it_says_that_the_evaluation_failed(client: Client, vera: User, adapter: Adapter) -> None:
    job = Evaluation.objects.submit(adapter, None)
    finish(job, State.FAILED, error_code="crashed", error_message="The worker lost its memory.")
    text = page(client, vera, adapter)
    assert "This adapter has no scores" in text
    assert "The worker lost its memory." in text


def test_it_leads_to_the_other_versions(
    client: Client, vera: User, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    first, second = (publish(make_run(project, dataset, base_model, by=ed)) for _time in range(2))
    assert second.version == 2
    assert f'href="{first.get_absolute_url()}"' in page(client, vera, second)


def test_only_a_manager_is_offered_the_stage(client: Client, mara: User, ed: User, adapter: Adapter) -> None:
    stage = reverse("adapter-stage", args=[adapter.pk])
    assert stage in page(client, mara, adapter)
    assert stage not in page(client, ed, adapter)


def test_a_name_cannot_become_markup(
    client: Client, vera: User, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    run = make_run(project, dataset, base_model, by=ed, name='<script>alert("x")</script>')
    assert "<script>alert" not in page(client, vera, publish(run))


def test_it_hides_the_adapter_from_an_outsider(client: Client, otto: User, adapter: Adapter) -> None:
    client.force_login(otto)
    assert client.get(reverse("adapter-detail", args=[adapter.pk])).status_code == 404
