"""Using an adapter elsewhere: recipes on its page, the GGUF download, and the page for a shared server."""

from __future__ import annotations

import json

import numpy as np
import pytest
from django.test import Client
from django.urls import reverse
from gguf import GGUFReader
from safetensors.numpy import save

from dashboard.models import Adapter, BaseModel, Dataset, Evaluation, Project, User
from dashboard.presenters import serving
from dashboard.presenters.serving import HighestRank
from tests.conftest import make_run
from tests.dashboard.adapters.test_downloads import body
from tests.dashboard.conftest import FILES, evaluate, publish

O_PROJ = "base_model.model.model.layers.0.self_attn.o_proj"


def weights(module: str = O_PROJ) -> bytes:
    values = np.ones((4, 32), np.float32)
    return save({f"{module}.lora_A.weight": values, f"{module}.lora_B.weight": values.T.copy()})


def make_adapter(
    project: Project, dataset: Dataset, base: BaseModel, ed: User, module: str = O_PROJ
) -> Adapter:
    config = json.dumps({"lora_alpha": 8, "r": 4}).encode()
    files = FILES | {"adapter_model.safetensors": weights(module), "adapter_config.json": config}
    return publish(make_run(project, dataset, base, by=ed), files)


@pytest.fixture
def real(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Adapter:
    """An adapter with real weights on a base model whose configuration is on disk."""
    folder = base_model.local_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_attention_heads": 4}))
    return make_adapter(project, dataset, base_model, ed)


def test_a_viewer_downloads_the_gguf_file(client: Client, vera: User, real: Adapter) -> None:
    client.force_login(vera)
    url = reverse("adapter-download", args=[real.pk])
    answer = client.get(url, {"format": "gguf"})
    assert answer["Content-Disposition"] == 'attachment; filename="Triage-v1.gguf"'
    assert body(answer)[:4] == b"GGUF"
    names = [tensor.name for tensor in GGUFReader(real.gguf()).tensors]
    assert names == ["blk.0.attn_output.weight.lora_a", "blk.0.attn_output.weight.lora_b"]
    assert f"{url}?format=gguf" in client.get(real.get_absolute_url()).content.decode()


def test_the_gguf_file_is_written_once_and_again_after_its_removal(real: Adapter) -> None:
    made = real.gguf().stat().st_mtime_ns
    assert real.gguf().stat().st_mtime_ns == made
    content = real.gguf().read_bytes()
    real.gguf().unlink()
    assert real.gguf().read_bytes() == content


def test_an_adapter_without_gguf_form_is_refused(
    client: Client,
    api: Client,
    vera: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    ed: User,
    real: Adapter,
) -> None:
    head = make_adapter(project, dataset, base_model, ed, "base_model.model.lm_head")
    client.force_login(vera)
    page = client.get(reverse("adapter-download", args=[head.pk]), {"format": "gguf"})
    assert page.status_code == 409
    assert "?format=gguf" not in page.content.decode()
    answer = api.get(f"/api/v1/adapters/{head.pk}/download", {"format": "gguf"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_gguf")


def test_a_broken_file_of_weights_is_missing(client: Client, vera: User, real: Adapter) -> None:
    real.gguf().unlink()
    (real.path() / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    client.force_login(vera)
    assert client.get(real.get_absolute_url()).status_code == 200
    assert client.get(reverse("adapter-download", args=[real.pk]), {"format": "gguf"}).status_code == 404


def test_the_api_downloads_the_gguf_file(api: Client, real: Adapter) -> None:
    answer = api.get(f"/api/v1/adapters/{real.pk}/download", {"format": "gguf"})
    assert body(answer)[:4] == b"GGUF"
    assert 'filename="Triage-v1.gguf"' in answer["Content-Disposition"]


def test_each_server_has_a_recipe(real: Adapter) -> None:
    assert [(recipe.id, bool(recipe.code)) for recipe in serving.recipes(real)] == [
        ("peft", True),
        ("vllm", True),
        ("llama-cpp", True),
        ("ollama", True),
    ]


def test_what_a_server_cannot_load_has_a_reason_instead_of_code(adapter: Adapter) -> None:
    adapter.run.spec["hyperparameters"]["use_dora"] = True
    adapter.base_model.census["model_type"] = "gpt2"
    recipes = {recipe.id: recipe for recipe in serving.recipes(adapter)}
    assert not recipes["vllm"].code
    assert "DoRA" in recipes["vllm"].explanation
    assert not recipes["llama-cpp"].code


def test_the_smoke_test_uses_the_shortest_row_with_different_answers(adapter: Adapter) -> None:
    recipes = serving.recipes(adapter)
    assert serving.smoke_test(adapter, recipes) is None
    evaluate(adapter, 0.0, 0.5)
    answers = {
        1: ("", "short", "same", "same"),
        2: ("", "much longer", "no", "yes"),
        3: ("Brief.", "long", "maybe", "sure"),
        4: (None, "turns", "one", "two"),
    }
    for evaluation in adapter.run.evaluations.all():
        side = 2 if evaluation.subject == Evaluation.Subject.BASE else 3
        items = [
            {
                "row": row,
                "system": texts[0],
                "prompt": texts[1],
                "output": texts[side],
                "expected": "x",
                "scores": {},
            }
            for row, texts in answers.items()
        ]
        evaluation.record_result(4, evaluation.metrics, items)
    found = serving.smoke_test(adapter, recipes)
    assert found is not None
    assert (found.base.output, found.adapter.output) == ("maybe", "sure")
    assert [recipe.id for recipe, _code in found.programs] == [one.id for one in recipes if one.code]
    for _recipe, code in found.programs:
        compile(code, "smoke_test.py", "exec")
        assert '{"role": "system", "content": "Brief."}' in code
        assert '{"role": "user", "content": "long"}' in code
        assert 'stored_adapter_answer = "sure"' in code


def test_approved_adapters_are_served_together(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    first, second, third = (
        publish(make_run(project, dataset, base_model, by=ed, name=f"team {letter}")) for letter in "abc"
    )
    for one in (first, second):
        one.set_stage("approved")
    client.force_login(vera)
    text = client.get(reverse("adapter-serve")).content.decode()
    assert "team-a-v1=./team-a-v1" in text
    assert "team-b-v1=./team-b-v1" in text
    assert "team-c-v1" not in text
    chosen = client.get(reverse("adapter-serve"), {"base": base_model.pk, "adapter": third.pk})
    assert "team-c-v1=./team-c-v1" in chosen.content.decode()


def test_an_adapter_that_widens_the_server_is_named(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    narrow, wide, refused = (publish(make_run(project, dataset, base_model, by=ed)) for _time in range(3))
    for one, modules in ((narrow, ["o_proj"]), (wide, ["o_proj", "down_proj"]), (refused, ["o_proj"])):
        one.run.spec["target"]["target_modules"] = modules
    refused.run.spec["hyperparameters"]["use_dora"] = True
    server = serving.shared_server(base_model, [narrow, wide, refused])
    assert server.widest == [(wide, ["down_proj"])]
    assert [one for one, _reason in server.left_out] == [refused]
    assert server.slot_bytes is not None
    assert server.full_slot_bytes is not None
    assert server.slot_bytes < server.full_slot_bytes
    alone = serving.shared_server(base_model, [narrow])
    assert alone.slot_bytes is not None
    assert alone.slot_bytes < server.slot_bytes


def test_adapters_that_raise_the_rank_are_named_with_their_cost(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    adapters = [publish(make_run(project, dataset, base_model, by=ed, name=name)) for name in "abc"]
    for one, rank in zip(adapters, (8, 12, 64), strict=True):
        one.run.spec["hyperparameters"]["r"] = rank
        one.run.save()
    server = serving.shared_server(base_model, adapters)
    assert server.slot_bytes is not None
    assert server.highest == HighestRank(adapters[2:], 64, 16, server.slot_bytes // 4)
    assert serving.shared_server(base_model, adapters[2:]).highest is None
    client.force_login(vera)
    page = client.get(reverse("adapter-serve"), {"adapter": [one.pk for one in adapters]}).content.decode()
    assert "Without c:v1, rank 16 would be enough instead of 64." in page
    assert "Each adapter would then need" in page


@pytest.mark.parametrize("query", [{"base": "x"}, {"base": "99999999999999999999"}, {"adapter": "x"}])
def test_invalid_choices_are_ignored(
    client: Client, vera: User, adapter: Adapter, query: dict[str, str]
) -> None:
    client.force_login(vera)
    assert client.get(reverse("adapter-serve"), query).status_code == 200


def test_adapters_of_other_projects_are_not_offered(client: Client, otto: User, adapter: Adapter) -> None:
    client.force_login(otto)
    text = client.get(reverse("adapter-serve"), {"base": adapter.base_model_id, "adapter": adapter.pk})
    assert "Triage" not in text.content.decode()
