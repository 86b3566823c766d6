"""Adding a base model from a folder or a hub id."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Job, User
from dashboard.models.catalog.base_model import model_folders
from tests.conftest import finish, make_base_model

FOLDER = {"source": "folder", "folder": "qwen", "name": "Qwen", "hub_id": "Qwen/Qwen3-0.6B"}
HUB = {"source": "hub", "hub_id": "Qwen/Qwen3-0.6B", "revision": ""}


@pytest.fixture
def models_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """DATA_DIR/models with one model in it, a nested one, and a link that leads out."""
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    root = tmp_path / "models"
    for name in ("qwen", "org/small"):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text("{}")
    (root / "escape").symlink_to("/usr")
    (root / ".hidden").mkdir()
    return root


@pytest.mark.usefixtures("models_folder")
def test_a_folder_is_added_and_inspected(client: Client, mara: User) -> None:
    client.force_login(mara)
    response = client.post(reverse("base-model-create"), FOLDER)
    base_model = BaseModel.objects.get(source="folder")
    assert response["Location"] == base_model.get_absolute_url()
    assert (base_model.hub_id, base_model.state) == ("Qwen/Qwen3-0.6B", "queued")
    assert base_model.job
    assert base_model.job.spec["path"].endswith("models/qwen")


def test_a_hub_id_is_added_and_inspected(client: Client, mara: User) -> None:
    client.force_login(mara)
    client.post(reverse("base-model-create"), {**HUB, "revision": "main"})
    base_model = BaseModel.objects.get(source="hub")
    assert (base_model.name, base_model.revision) == ("Qwen3-0.6B", "main")
    assert Job.objects.get().spec["hub_id"] == "Qwen/Qwen3-0.6B"


@pytest.mark.usefixtures("models_folder")
def test_only_folders_inside_the_models_folder_are_offered() -> None:
    assert model_folders() == ["org/small", "qwen"]


@pytest.mark.usefixtures("models_folder")
@pytest.mark.parametrize("folder", ["", "..", "/etc", "escape", ".hidden", "missing", "qwen/../qwen"])
def test_other_folders_are_refused(client: Client, mara: User, folder: str) -> None:
    client.force_login(mara)
    assert client.post(reverse("base-model-create"), {**FOLDER, "folder": folder}).status_code == 422
    assert not BaseModel.objects.filter(source="folder").exists()


@pytest.mark.parametrize(
    "hub_id", ["", "/etc/passwd", "../x", "a/b/c", "a b/c", "https://example.org/x", "x" * 97]
)
@pytest.mark.parametrize("source", ["hub", "folder"])
def test_an_invalid_hub_id_is_refused(client: Client, mara: User, hub_id: str, source: str) -> None:
    client.force_login(mara)
    values = {**(HUB if source == "hub" else FOLDER), "hub_id": hub_id}
    assert client.post(reverse("base-model-create"), values).status_code == 422
    assert not Job.objects.exists()


def test_another_project_may_have_the_same_model(client: Client, mara: User, otto: User) -> None:
    make_base_model(otto.projects().get(), hub_id="Qwen/Qwen3-0.6B")
    client.force_login(mara)
    assert client.post(reverse("base-model-create"), HUB).status_code == 302


@pytest.mark.parametrize("source", ["", "bundled", "x"])
def test_an_unknown_form_is_refused(client: Client, mara: User, source: str) -> None:
    client.force_login(mara)
    assert client.post(reverse("base-model-create"), {**HUB, "source": source}).status_code == 422


def test_an_empty_models_folder_is_explained(
    client: Client, mara: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    client.force_login(mara)
    assert "No model folder was found" in client.get(reverse("base-model-create")).content.decode()


@pytest.mark.usefixtures("models_folder")
@pytest.mark.parametrize("values", [HUB, FOLDER])
def test_a_repeated_form_leads_to_its_first_model(client: Client, mara: User, values: dict[str, str]) -> None:
    client.force_login(mara)
    sent = {**values, "idempotency_key": str(uuid.uuid4())}
    first, again = (client.post(reverse("base-model-create"), sent) for _time in range(2))
    assert (again.status_code, again["Location"]) == (302, first["Location"])
    assert Job.objects.filter(kind="inspect").count() == 1


def test_a_repeated_form_finds_a_model_that_was_inspected_again(client: Client, mara: User) -> None:
    client.force_login(mara)
    sent = {**HUB, "idempotency_key": str(uuid.uuid4())}
    first = client.post(reverse("base-model-create"), sent)
    base_model = BaseModel.objects.get(source="hub")
    assert base_model.job
    finish(base_model.job)
    base_model.inspect(mara)
    BaseModel.objects.filter(pk=base_model.pk).update(revision="0123abcd")
    assert client.post(reverse("base-model-create"), sent)["Location"] == first["Location"]


@pytest.mark.parametrize("change", [{"hub_id": "Qwen/Qwen3-4B"}, {"revision": "v2"}])
def test_another_model_under_one_key_is_added_too(client: Client, mara: User, change: dict[str, str]) -> None:
    client.force_login(mara)
    sent = {**HUB, "idempotency_key": str(uuid.uuid4())}
    first, other = (client.post(reverse("base-model-create"), {**sent, **one}) for one in ({}, change))
    assert other.status_code == 302
    assert other["Location"] != first["Location"]
