"""The sample is one click away, and a second click opens it instead of importing it again."""

from __future__ import annotations

from pathlib import Path

from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from dashboard.models import Dataset, DatasetVersion, State, User
from dashboard.models.catalog.dataset import SAMPLE_FILE, SAMPLE_NAME
from tests.conftest import finish


def test_one_click_queues_its_import(client: Client, ed: User, settings: Settings) -> None:
    client.force_login(ed)
    response = client.post(reverse("dataset-sample"))
    version = DatasetVersion.objects.get()
    assert response["Location"] == version.dataset.get_absolute_url()
    assert version.dataset.name == SAMPLE_NAME
    assert (Path(settings.UPLOAD_DIR) / version.upload).read_bytes() == SAMPLE_FILE.read_bytes()


def test_a_second_click_opens_the_first(client: Client, ed: User) -> None:
    client.force_login(ed)
    client.post(reverse("dataset-sample"))
    client.post(reverse("dataset-sample"))
    assert DatasetVersion.objects.count() == 1


def test_a_failed_import_is_tried_once_more(client: Client, ed: User) -> None:
    client.force_login(ed)
    client.post(reverse("dataset-sample"))
    job = DatasetVersion.objects.get().job
    assert job
    finish(job, State.FAILED)
    client.post(reverse("dataset-sample"))
    assert DatasetVersion.objects.count() == 2


def test_it_needs_a_post(client: Client, ed: User) -> None:
    client.force_login(ed)
    assert client.get(reverse("dataset-sample")).status_code == 405


def test_it_refuses_a_viewer(client: Client, vera: User) -> None:
    client.force_login(vera)
    assert client.post(reverse("dataset-sample")).status_code == 403
    assert not Dataset.objects.exists()
