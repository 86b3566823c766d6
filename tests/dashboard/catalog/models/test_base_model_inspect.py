"""Inspecting a base model again."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Job, User


def test_one_inspection_runs_at_a_time(client: Client, mara: User, base_model: BaseModel) -> None:
    client.force_login(mara)
    for _press in range(2):
        client.post(reverse("base-model-inspect", args=[base_model.pk]))
    assert Job.objects.filter(kind="inspect", state="queued").count() == 1


def test_a_manager_may_inspect_the_bundled_model(client: Client, mara: User) -> None:
    bundled = BaseModel.objects.ensure_bundled()
    client.force_login(mara)
    client.post(reverse("base-model-inspect", args=[bundled.pk]))
    assert Job.objects.get().kind == "inspect"
