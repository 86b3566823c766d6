"""A study as files: the differences and every score as CSV, and all of it as JSON."""

from __future__ import annotations

import csv
import io
import json

from django.core.cache import caches
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from dashboard.models import BaseModel, Dataset, EvaluationItem, Project, Study, User
from dashboard.models.studies.results.export import summary_of
from dashboard.models.studies.results.verdict_sentence import verdict_sentence
from tests.dashboard.studies.factories import TABLE, make_study, score_first_seed


def rows_of(client: Client, route: str, study: Study) -> list[dict[str, str]]:
    """A CSV of the study, line by line."""
    answer = client.get(reverse(route, args=[study.pk]))
    assert answer.headers["Content-Type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(answer.content.decode())))


def test_csv_differences_have_the_unit_of_the_metric(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    rows = {row["arm"]: row for row in rows_of(client, "study-deltas-csv", study)}
    assert float(rows["mlp"]["difference"]) == -0.5
    assert rows["mlp"]["outcome"] == "inferior"
    assert rows["quality"]["difference"] == ""


def test_means_can_be_recomputed_from_the_scores_csv(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    rows = rows_of(client, "study-scores-csv", study)
    own = [float(row["value"]) for row in rows if row["arm"] == "mlp"]
    assert len(own) == 180
    found = next(arm for arm in study.result.arms if arm.name == "mlp")
    assert abs(sum(own) / len(own) - found.metric.mean) < 1e-12
    assert {row["seed"] for row in rows if row["arm"] == "base"} == {""}
    assert all(row["group"] == row["item"] for row in rows), "these rows stand alone"


def test_json_contains_settings_and_scores(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    answer = client.get(reverse("study-json", args=[study.pk]))
    assert answer.headers["Content-Disposition"] == f'attachment; filename="study-{study.pk}.json"'
    found = answer.json()
    assert found["study"]["comparisons"] == study.result.to_dict()["comparisons"]
    assert len(found["scores"]) == 60 + 3 * 3 * 60
    assert {one["arm"] for one in found["settings"]} == {"efficient", "mlp", "quality"}
    assert found["study"]["test_sha256"] == study.dataset_version.test_sha256 == "ef" * 32
    assert {one["spec"]["data"]["test_sha256"] for one in found["settings"]} == {"ef" * 32}
    # No folder of this installation.
    assert all("path" not in one["spec"]["base"] for one in found["settings"])


def test_unfinished_study_has_no_files(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    working = score_first_seed(make_study(project, dataset, base_model), TABLE)
    assert EvaluationItem.objects.exists()
    client.force_login(ed)
    for route in ("study-deltas-csv", "study-scores-csv", "study-json"):
        answer = client.get(reverse(route, args=[working.pk]), follow=True)
        assert answer.redirect_chain == [(working.get_absolute_url(), 302)]
        assert "Scores are available when all runs of the study have ended." in answer.content.decode()


def test_the_stored_summary_says_what_the_rows_say(study: Study) -> None:
    stored = study.stored_summary
    assert stored["verdict"] == verdict_sentence(study)
    study.stored_summary = {}
    assert json.loads(json.dumps(summary_of(study))) == stored


def test_a_study_that_goes_on_shows_no_stored_summary(study: Study) -> None:
    study.finished_at = None
    assert study.summary == {}


def test_queries_of_the_page_do_not_grow_with_the_arms(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    client.get(study.get_absolute_url())
    caches["rendered"].clear()
    with CaptureQueriesContext(connection) as three:
        client.get(study.get_absolute_url())
    study.arms.get(name="mlp").delete()
    with CaptureQueriesContext(connection) as two:
        client.get(study.get_absolute_url())
    assert len(three) == len(two)
