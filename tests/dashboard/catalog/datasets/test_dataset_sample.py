"""Importing the bundled sample."""

from __future__ import annotations

from pathlib import Path

from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from dashboard.models import DatasetVersion, State, User
from dashboard.models.catalog.dataset import SAMPLE_FILE, SAMPLE_NAME
from tests.conftest import finish


def test_the_import_is_queued(client: Client, ed: User, settings: Settings) -> None:
    client.force_login(ed)
    response = client.post(reverse("dataset-sample"))
    version = DatasetVersion.objects.get()
    assert response["Location"] == version.dataset.get_absolute_url()
    assert version.dataset.name == SAMPLE_NAME
    assert (Path(settings.UPLOAD_DIR) / version.upload).read_bytes() == SAMPLE_FILE.read_bytes()


def test_the_sample_is_imported_once(client: Client, ed: User) -> None:
    client.force_login(ed)
    client.post(reverse("dataset-sample"))
    client.post(reverse("dataset-sample"))
    assert DatasetVersion.objects.count() == 1


def test_a_failed_import_is_repeated(client: Client, ed: User) -> None:
    client.force_login(ed)
    client.post(reverse("dataset-sample"))
    job = DatasetVersion.objects.get().job
    assert job
    finish(job, State.FAILED)
    client.post(reverse("dataset-sample"))
    assert DatasetVersion.objects.count() == 2
