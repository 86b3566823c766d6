"""Forgetting of a study's arms: the loss on a fixed text and the accuracy on general questions."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest
from django.test import Client
from django.urls import reverse

from dashboard.charts import forgetting_charts
from dashboard.models import BaseModel, Dataset, Evaluation, Project, Study, TrainingRun, User
from dashboard.models.evaluations import forgetting
from dashboard.models.studies.results.export import summary_of
from tests.dashboard.conftest import api_client
from tests.dashboard.studies.factories import TABLE, make_study, score_first_seed

QUESTIONS = {"version": 1, "sha256": "ab" * 32, "choices": 4}
BASE_MARKS = [1] * 45 + [0] * 27


def measure(study: Study, base_marks: list[int] = BASE_MARKS) -> Study:
    """Add general losses and marks: efficient gets worse with each seed, quality does not."""
    for evaluation in Evaluation.objects.select_related("run__study_arm"):
        arm, seed = evaluation.run.study_arm, evaluation.run.seed
        assert arm
        lossy = evaluation.subject == "adapter" and arm.name == "efficient"
        evaluation.metrics["general_loss"] = 3.0 + (0.1 + 0.01 * seed if lossy else 0.0)
        marks = [0] * seed + base_marks[seed:] if lossy else base_marks
        evaluation.general_questions = {**QUESTIONS, "marks": marks}
        evaluation.save()
    measured = Study.objects.with_facts().get(pk=study.pk)
    if measured.is_over:
        # As at the end of a study.
        measured.stored_summary = {}
        Study.objects.filter(pk=study.pk).update(stored_summary=summary_of(measured))
    return Study.objects.with_facts().get(pk=study.pk)


def test_loss_is_shown_as_a_rise(study: Study) -> None:
    found = forgetting_charts.table(forgetting.study_forgetting(measure(study)))
    assert found
    row = found["rows"][0]
    assert (row["arm"], row["loss"], row["rise"], row["spread"]) == (
        "efficient",
        "3.120",
        "+0.120",
        "+0.110 – +0.130",
    )
    assert found["bases"] == [{"name": "", "loss": "3.000", "right": "62.5 %"}]


def test_change_is_paired_by_question(study: Study) -> None:
    one = forgetting.study_forgetting(measure(study))["efficient"]
    change = one.change()
    assert change
    lost = np.array([[-1.0] * seed + [0.0] * (72 - seed) for seed in (1, 2, 3)])
    assert change["mean"] == pytest.approx(lost.mean())
    assert change["low"] < lost.mean() < change["high"]
    assert one.accuracy == pytest.approx((44 + 43 + 42) / 3 / 72)


def part_of(client: Client, user: User, study: Study) -> str:
    client.force_login(user)
    page = client.get(study.get_absolute_url()).content.decode()
    return page.split('id="study-forgetting"')[1].split("</section>")[0]


def test_page_and_report_show_table_and_figures(client: Client, vera: User, study: Study) -> None:
    measure(study)
    part = part_of(client, vera, study)
    for text in ('id="plot-forgotten-loss"', 'id="plot-forgotten-questions"', "-2.8 points", "72 fixed"):
        assert text in part
    assert "guessing" not in part
    report = client.get(reverse("study-report", args=[study.pk])).content.decode()
    assert 'id="plot-forgotten-questions"' in report


def test_unmeasured_forgetting_has_no_section(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    assert "study-forgetting" not in client.get(study.get_absolute_url()).content.decode()


def test_guessing_base_model_is_named(client: Client, vera: User, study: Study) -> None:
    measure(study, [1] * 20 + [0] * 52)
    assert "no better than guessing (20 of 72)" in part_of(client, vera, study)


def test_answers_to_other_questions_are_not_paired(study: Study) -> None:
    measure(study)
    for evaluation in Evaluation.objects.filter(subject="adapter"):
        evaluation.general_questions["sha256"] = "cd" * 32
        evaluation.save()
    arm = forgetting.study_forgetting(Study.objects.with_facts().get(pk=study.pk))["efficient"]
    assert arm.change() is None
    assert arm.accuracy is not None


def test_the_csv_contains_forgetting(client: Client, vera: User, study: Study) -> None:
    measure(study)
    client.force_login(vera)
    text = client.get(reverse("study-deltas-csv", args=[study.pk])).content.decode()
    row = next(csv.DictReader(text.splitlines()))
    assert float(row["general_loss_rise"]) == pytest.approx(0.12)
    assert float(row["general_accuracy_change"]) == pytest.approx(-2 / 72)
    assert float(row["general_accuracy_change_low"]) < -2 / 72


def test_every_seed_is_compared_with_the_base_model(study: Study) -> None:
    measure(study)
    late = TrainingRun.objects.filter(study_arm__name="efficient").order_by("pk").last()
    assert late
    assert forgetting.run_forgetting(late).base_loss == pytest.approx(3.0)
    assert forgetting.run_forgetting(late).rise == pytest.approx(0.13)
    assert late.scores()["base"]["exact_match"] == pytest.approx(5 / 60)


def export(project: Project, user: User, study: Study) -> Any:
    api = api_client(project, user)
    return api.get(f"/api/v1/studies/{study.pk}/export").json()


def test_a_change_can_be_recomputed_from_the_export(project: Project, vera: User, study: Study) -> None:
    measure(study)
    exported = export(project, vera, study)
    marks = {(one["arm"], one["seed"]): one["marks"] for one in exported["general_questions"]}
    assert len(marks) == 1 + 3 * 3
    again = np.mean([np.subtract(marks["efficient", seed], marks["base", None]) for seed in (1, 2, 3)])
    arms = {arm["name"]: arm["forgetting"] for arm in exported["study"]["arms"]}
    assert arms["efficient"]["general_accuracy_change"]["mean"] == pytest.approx(again)
    assert arms["efficient"]["general_loss_rise"] == pytest.approx(0.12)
    assert arms["quality"]["base_general_accuracy"] == pytest.approx(45 / 72)


def test_unmeasured_values_are_null_in_the_api(project: Project, vera: User, study: Study) -> None:
    exported = export(project, vera, study)
    assert exported["general_questions"] == []
    assert set(exported["study"]["arms"][0]["forgetting"].values()) == {None}


def test_unfinished_study_exports_no_forgetting(
    project: Project, dataset: Dataset, base_model: BaseModel, vera: User
) -> None:
    half = measure(score_first_seed(make_study(project, dataset, base_model), TABLE))
    exported = export(project, vera, half)
    assert exported["general_questions"] == []
    assert [arm["forgetting"] for arm in exported["study"]["arms"]] == [None, None]
