"""The report of a study."""

from __future__ import annotations

from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, Project, Study, User
from tests.dashboard.studies.factories import make_study


def page_of(client: Client, person: User, study: Study) -> str:
    client.force_login(person)
    return client.get(reverse("study-report", args=[study.pk])).content.decode()


def test_report_has_verdict_method_and_appendix(client: Client, vera: User, study: Study) -> None:
    page = page_of(client, vera, study)
    parts = ("study-verdict", "plot-intervals", "How it was measured", "What was not measured", "Appendix")
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    for words in (
        study.dataset_version.sha256,
        study.base_model.sha256,
        "1, 2, 3",
        "Learning rate",
        "60 test rows",
    ):
        assert words in page


def test_settings_are_split_into_differing_and_equal(client: Client, vera: User, study: Study) -> None:
    page = page_of(client, vera, study).split("Settings in which the arms differ")[1]
    by_arm, alike = page.split("Settings that are the same in all arms")
    assert "Target modules" in by_arm
    assert "Learning rate" not in by_arm
    assert alike.count("Learning rate<") == 1


def test_report_shows_the_pattern(client: Client, vera: User, study: Study) -> None:
    assert "The pattern:" not in page_of(client, vera, study)
    Study.objects.filter(pk=study.pk).update(pattern=r"total: <\d+>")
    assert r"The pattern: <code>total: &lt;\d+&gt;</code>" in page_of(client, vera, study)


def test_report_shows_library_versions(client: Client, vera: User, study: Study) -> None:
    study.runs().update(measured={"versions": {"peft": "0.19.3"}})
    assert "peft 0.19.3" in page_of(client, vera, study)


def test_unfinished_study_redirects(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    queued = make_study(project, dataset, base_model)
    client.force_login(vera)
    answer = client.get(reverse("study-report", args=[queued.pk]))
    assert answer.headers["Location"] == queued.get_absolute_url()
