"""The log of decisions; a manager's decision approves the adapter."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import Adapter, BaseModel, Dataset, Decision, Project, Study, User
from tests.dashboard.studies.factories import make_study

REASON = "it is as good and a third of the size"


def adapter_of(study: Study, arm: str) -> Adapter:
    """Return the adapter of the arm's first seed."""
    found = (
        Adapter.objects.filter(run__study_arm__study=study, run__study_arm__name=arm).order_by("pk").first()
    )
    assert found
    return found


def decide(client: Client, person: User, study: Study, **values: object) -> str:
    """Decide for the arm efficient and return the page."""
    client.force_login(person)
    body = {"adapter": adapter_of(study, "efficient").pk, "reason": REASON, **values}
    return client.post(reverse("decision-create", args=[study.pk]), body, follow=True).content.decode()


def test_decision_of_a_manager_approves_the_adapter(client: Client, mara: User, study: Study) -> None:
    page = decide(client, mara, study)
    assert f"Chosen: efficient. Reason: {REASON}" in page
    assert mara.email in page
    assert adapter_of(study, "efficient").stage == Adapter.Stage.APPROVED


def test_decision_of_an_editor_leaves_a_draft(client: Client, ed: User, study: Study) -> None:
    assert "A manager still has to approve" in decide(client, ed, study)
    assert adapter_of(study, "efficient").stage == Adapter.Stage.DRAFT


@pytest.mark.parametrize("values", [{"reason": ""}, {"adapter": 987_654}, {"reason": "x" * 1001}])
def test_incomplete_decision_is_refused(
    client: Client, mara: User, study: Study, values: dict[str, object]
) -> None:
    assert "the reason in up to 1,000 characters" in decide(client, mara, study, **values)
    assert not Decision.objects.exists()


def test_unfinished_study_takes_no_decision(
    client: Client, mara: User, project: Project, dataset: Dataset, base_model: BaseModel, study: Study
) -> None:
    queued = make_study(project, dataset, base_model)
    client.force_login(mara)
    body = {"adapter": adapter_of(study, "mlp").pk, "reason": REASON}
    page = client.post(reverse("decision-create", args=[queued.pk]), body, follow=True).content.decode()
    assert "Record a decision when the study has a result." in page


def test_decision_cannot_be_changed(mara: User, study: Study) -> None:
    decision = Decision.objects.record(study, adapter_of(study, "efficient"), REASON, mara)
    decision.reason = "something else"
    with pytest.raises(TypeError):
        decision.save()


def test_report_and_adapter_show_the_decision(client: Client, mara: User, study: Study) -> None:
    decide(client, mara, study)
    for address in (
        reverse("study-report", args=[study.pk]),
        adapter_of(study, "efficient").get_absolute_url(),
    ):
        assert REASON in client.get(address).content.decode()
