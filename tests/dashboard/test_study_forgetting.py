"""What a study's arms forget: the loss on a fixed text and general questions, beside the verdict."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from django.test import Client
from django.urls import reverse

from dashboard import forgetting_charts
from dashboard.models import (
    ApiToken,
    BaseModel,
    Dataset,
    Evaluation,
    Project,
    Study,
    TrainingRun,
    User,
    forgetting,
)
from tests.dashboard.studies import conclude, make_study, score_first_seed

QUESTIONS = {"version": 1, "sha256": "ab" * 32, "choices": 4}
BASE_MARKS = [1] * 45 + [0] * 27
TABLE = {
    "base": {0: [0.0] * 12},
    "efficient": {seed: [1.0] * 8 + [0.0] * 4 for seed in (1, 2, 3)},
    "quality": {seed: [1.0] * 9 + [0.0] * 3 for seed in (1, 2, 3)},
}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel) -> Study:
    """A finished study of before: nobody has asked general questions."""
    return conclude(make_study(project, dataset, base_model), TABLE)


def measure(study: Study, base_marks: list[int] = BASE_MARKS) -> Study:
    """Efficient rises by 0.1 and 0.01 a seed and loses one answer for each; Quality loses none."""
    for evaluation in Evaluation.objects.select_related("run__study_arm"):
        arm, seed = evaluation.run.study_arm, evaluation.run.seed
        assert arm
        lossy = evaluation.subject == "adapter" and arm.name == "efficient"
        evaluation.metrics["general_loss"] = 3.0 + (0.1 + 0.01 * seed if lossy else 0.0)
        marks = [0] * seed + base_marks[seed:] if lossy else base_marks
        evaluation.general_questions = {**QUESTIONS, "marks": marks}
        evaluation.save()
    return Study.objects.with_facts().get(pk=study.pk)


def test_the_loss_is_told_as_its_rise_over_the_base_model(study: Study) -> None:
    found = forgetting_charts.table(forgetting.of_study(measure(study)))
    assert found
    row = found["rows"][0]
    assert (row["arm"], row["loss"], row["rise"], row["spread"]) == (
        "efficient",
        "3.120",
        "+0.120",
        "+0.110 – +0.130",
    )
    assert found["bases"] == [{"name": "", "loss": "3.000", "right": "62.5 %"}]


def test_a_change_is_that_of_the_same_questions_over_all_seeds(study: Study) -> None:
    one = forgetting.of_study(measure(study))["efficient"]
    change = one.change()
    assert change
    lost = np.array([[-1.0] * seed + [0.0] * (72 - seed) for seed in (1, 2, 3)])
    assert change["mean"] == pytest.approx(lost.mean())
    assert change["low"] < lost.mean() < change["high"]
    assert one.accuracy == pytest.approx((44 + 43 + 42) / 3 / 72)


def test_where_nothing_changed_the_interval_is_not_nothing(study: Study) -> None:
    change = forgetting.of_study(measure(study))["quality"].change()
    assert change is not None
    assert (change["mean"], change["low"], change["high"]) == pytest.approx((0, -3 / 72, 3 / 72))


def test_the_page_shows_table_and_both_figures(client: Client, vera: User, study: Study) -> None:
    measure(study)
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    part = page.split('id="study-forgetting"')[1].split("</section>")[0]
    assert 'id="plot-forgotten-loss"' in part
    assert 'id="plot-forgotten-questions"' in part
    assert "-2.8 points" in part
    assert "Questions: 72 easy ones" in part
    assert "guessing" not in part


def test_the_report_shows_them_too(client: Client, vera: User, study: Study) -> None:
    measure(study)
    client.force_login(vera)
    page = client.get(reverse("study-report", args=[study.pk])).content.decode()
    assert 'id="plot-forgotten-questions"' in page
    assert "General questions right" in page


def test_a_study_of_before_shows_dashes_and_says_why(client: Client, vera: User, study: Study) -> None:
    for evaluation in Evaluation.objects.all():
        evaluation.metrics["general_loss"] = 3.0
        evaluation.save()
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    part = page.split('id="study-forgetting"')[1].split("</section>")[0]
    assert "General questions were not asked" in part
    assert "–" in part
    assert "plot-forgotten-questions" not in part


def test_without_any_measure_there_is_no_section(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    assert "study-forgetting" not in client.get(study.get_absolute_url()).content.decode()


def test_a_base_model_that_guesses_is_named(client: Client, vera: User, study: Study) -> None:
    measure(study, [1] * 20 + [0] * 52)
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    assert "no better than guessing (20 of 72): a fall cannot be seen here" in page


def test_answers_to_other_questions_are_not_paired(study: Study) -> None:
    measure(study)
    for evaluation in Evaluation.objects.filter(subject="adapter"):
        evaluation.general_questions["sha256"] = "cd" * 32
        evaluation.save()
    one = forgetting.of_study(Study.objects.with_facts().get(pk=study.pk))["efficient"]
    assert one.change() is None
    assert one.accuracy is not None


def test_the_csv_has_them(client: Client, vera: User, study: Study) -> None:
    measure(study)
    client.force_login(vera)
    text = client.get(reverse("study-deltas-csv", args=[study.pk])).content.decode()
    row = next(csv.DictReader(text.splitlines()))
    assert float(row["general_loss_rise"]) == pytest.approx(0.12)
    assert float(row["general_accuracy_change"]) == pytest.approx(-2 / 72)
    assert float(row["general_accuracy_change_low"]) < -2 / 72


def test_a_later_seed_is_read_beside_the_base_model_of_its_study(study: Study) -> None:
    measure(study)
    late = TrainingRun.objects.filter(study_arm__name="efficient").order_by("pk").last()
    assert late
    found = forgetting.of_run(late)
    assert found.base_loss == pytest.approx(3.0)
    assert found.rise == pytest.approx(0.13)
    assert forgetting.scores_beside_base(late)["base"]["exact_match"] == 0.0


def reader(project: Project, user: User) -> Client:
    return Client(headers={"Authorization": f"Bearer {ApiToken.issue(project, user, 'x')[1]}"})


def test_the_api_tells_it_of_every_arm_and_of_the_base_model(
    project: Project, vera: User, study: Study
) -> None:
    measure(study)
    told = reader(project, vera).get(f"/api/v1/studies/{study.pk}").json()
    arms = {arm["name"]: arm["forgetting"] for arm in told["arms"]}
    assert arms["efficient"]["general_loss_rise"] == pytest.approx(0.12)
    assert arms["efficient"]["general_accuracy_change"]["mean"] == pytest.approx(-2 / 72)
    assert arms["quality"]["base_general_accuracy"] == pytest.approx(45 / 72)


def test_a_change_can_be_computed_again_from_the_export(project: Project, vera: User, study: Study) -> None:
    measure(study)
    told = reader(project, vera).get(f"/api/v1/studies/{study.pk}/export").json()
    marks = {(one["arm"], one["seed"]): one["marks"] for one in told["general_questions"]}
    assert len(marks) == 1 + 2 * 3
    again = np.mean([np.subtract(marks["efficient", seed], marks["base", None]) for seed in (1, 2, 3)])
    arm = next(arm for arm in told["study"]["arms"] if arm["name"] == "efficient")
    assert arm["forgetting"]["general_accuracy_change"]["mean"] == pytest.approx(again)


def test_a_study_of_before_has_nulls_in_the_api(project: Project, vera: User, study: Study) -> None:
    told = reader(project, vera).get(f"/api/v1/studies/{study.pk}/export").json()
    assert told["general_questions"] == []
    assert told["study"]["arms"][0]["forgetting"]["general_accuracy_change"] is None
    assert told["study"]["arms"][0]["forgetting"]["base_general_accuracy"] is None


def test_nothing_is_told_before_the_end(
    project: Project, dataset: Dataset, base_model: BaseModel, vera: User
) -> None:
    half = measure(score_first_seed(make_study(project, dataset, base_model), TABLE))
    told = reader(project, vera).get(f"/api/v1/studies/{half.pk}/export").json()
    assert told["general_questions"] == []
    assert {arm["name"]: arm["forgetting"] for arm in told["study"]["arms"]} == {
        "efficient": None,
        "quality": None,
    }
