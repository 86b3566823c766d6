"""Parts of an ended study's pages that are kept: nobody sees an old one, or one of another role."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from django.core.cache import caches
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from dashboard.models import (
    Adapter,
    Dataset,
    Evaluation,
    Job,
    ShareLink,
    Study,
    StudyArm,
    TargetModuleConfig,
    User,
)

CHANGES: dict[str, Callable[[Study], object]] = {
    "an arm is deleted": lambda study: StudyArm.objects.filter(study=study, name="mlp").delete(),
    "adapters are deleted": lambda study: Adapter.objects.filter(run__in=study.runs()).delete(),
    "a run is scored anew": lambda study: Evaluation.objects.filter(run__in=study.runs()).update(
        metrics={"exact_match": 0.125}
    ),
    "an evaluation fails": lambda study: Job.objects.filter(evaluations__run__in=study.runs()).update(
        state="failed"
    ),
    "time is measured anew": lambda study: study.runs().update(measured={"seconds": 7777}),
    "a config gets a name": lambda study: TargetModuleConfig.objects.filter(study_arms__study=study).update(
        name="Renamed"
    ),
    "an arm gets a name": lambda study: StudyArm.objects.filter(study=study, name="mlp").update(
        name="Renamed"
    ),
    "the dataset gets a name": lambda study: Dataset.objects.update(name="Renamed"),
    "the study gets a name": lambda study: Study.objects.filter(pk=study.pk).update(name="Renamed"),
}


def page_of(client: Client, study: Study, route: str) -> str:
    """Return a page without the token of its forms and the present minute."""
    text = client.get(reverse(route, args=[study.pk])).content.decode()
    return re.sub(r"""(FToken": "|csrfmiddlewaretoken" value=")\w+|<time.*?</time>|\d\d:\d\d UTC""", "", text)


@pytest.mark.parametrize("change", CHANGES)
def test_no_part_is_shown_after_a_row_of_it_changed(
    client: Client, mara: User, study: Study, change: str
) -> None:
    client.force_login(mara)
    for route in ("study-detail", "study-report"):
        page_of(client, study, route)
    CHANGES[change](study)
    kept = [page_of(client, study, route) for route in ("study-detail", "study-report")]
    caches["rendered"].clear()
    assert kept == [page_of(client, study, route) for route in ("study-detail", "study-report")]


def test_runs_and_scores_are_read_for_the_first_reader_alone(
    client: Client, vera: User, study: Study
) -> None:
    caches["rendered"].clear()
    client.force_login(vera)
    with CaptureQueriesContext(connection) as first:
        page_of(client, study, "study-detail")
    with CaptureQueriesContext(connection) as second:
        page_of(client, study, "study-detail")
    assert len(second) < len(first) - 5


def test_a_reader_sees_nothing_of_another_role(client: Client, mara: User, vera: User, study: Study) -> None:
    caches["rendered"].clear()
    client.force_login(vera)
    own = page_of(client, study, "study-detail")
    client.force_login(mara)
    assert "study-decisions" in page_of(client, study, "study-detail")
    client.force_login(vera)
    assert page_of(client, study, "study-detail") == own
    assert "study-decisions" not in own


def test_a_shared_report_names_no_project_after_a_member_read_it(
    client: Client, mara: User, study: Study
) -> None:
    client.force_login(mara)
    assert study.project.name in page_of(client, study, "study-report")
    _link, secret = ShareLink.issue(study, mara, days=7, with_rows=False)
    client.logout()
    page = client.get(reverse("share-link-open", args=[secret])).content.decode()
    assert study.name in page
    assert f"{study.project.name} · #" not in page
