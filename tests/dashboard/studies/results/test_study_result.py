"""The result on the page of a finished study: verdict, figures, differences, limits."""

from __future__ import annotations

import itertools

import pytest
from django.test import Client

from dashboard.charts import axes, study_charts
from dashboard.models import (
    BaseModel,
    Dataset,
    Evaluation,
    MetricSeries,
    Project,
    Study,
    TrainingRun,
    User,
)
from dashboard.models.studies.results.limits import unmeasured
from dashboard.models.studies.results.result import result_of
from dashboard.models.studies.results.verdict_sentence import recommended_arm, verdict_sentence
from dashboard.presenters.study_page import deltas
from dashboard.views.studies.study_results import result_context
from tests.dashboard.studies.factories import ROWS, SEEDS, TABLE, Table, conclude, make_study


def test_page_shows_verdict_figures_and_outcomes(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    places = [page.index(part) for part in ("study-verdict", "plot-intervals", 'class="table card-table')]
    assert places == sorted(places)
    for words in ("As good within your margin", "Worse", "Reference", "-50.0 points", "60 test rows"):
        assert words in page


def test_page_has_no_superlatives(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode().lower()
    assert not any(word in page for word in ("best", "winner", "wins", "optimal"))


def test_interval_plot_shows_every_seed_and_the_base_model(study: Study) -> None:
    plot = study_charts.intervals(study)
    assert [row["name"] for row in plot["rows"]] == ["efficient", "quality", "mlp", "Base model"]
    assert [len(row["seeds"]) for row in plot["rows"]] == [3, 3, 3, 0]
    lowest = min(float(row["low"].rstrip("%")) for row in plot["rows"])
    highest = max(float(row["high"].rstrip("%")) for row in plot["rows"])
    assert (lowest, highest) == (axes.EDGE, 100 - axes.EDGE)
    assert not plot["is_base_outside"]


def test_distant_base_model_is_drawn_as_an_arrow(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    near = {seed: [1] * 60 + [0] * 40 for seed in SEEDS}
    table: Table = {"base": {0: [0] * 100}, "efficient": near, "quality": near}
    study = conclude(make_study(project, dataset, base_model), table)
    plot = study_charts.intervals(study)
    assert [row["beyond"] for row in plot["rows"]] == ["", "", "left"]
    assert min(float(row["low"].rstrip("%")) for row in plot["rows"][:2]) == axes.EDGE
    client.force_login(vera)
    assert "The arrow points to the base model" in client.get(study.get_absolute_url()).content.decode()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_numbers_of_twelve_close_marks_cover_nothing(share: float) -> None:
    marks = [{"share": share, "y": 100.0 + place} for place in range(12)]
    study_charts.place_numbers(marks, bottom=300)
    sides = [mark["share"] + study_charts.BESIDE * (-1 if mark["is_left"] else 1) for mark in marks]
    assert all(0 <= x <= 1 for x in sides)
    for x in sides:
        heights = sorted(mark["number_y"] for mark, own in zip(marks, sides, strict=True) if own == x)
        assert all(low + axes.LABEL_HEIGHT <= high for low, high in itertools.pairwise(heights))
        assert 0 < heights[0] <= heights[-1] <= 300


def test_names_are_cut_by_their_width() -> None:
    assert study_charts.shorten("attention output", 16) == "attention output"
    assert study_charts.shorten("ATTENTION OUTPUT", 16) == "ATTENTION…"
    assert study_charts.shorten("attention output of a long name #12", 16) == "attention outpu… #12"


def test_difference_has_interval_p_value_and_kept_gain(study: Study) -> None:
    rows = {row["arm"].name: row for row in deltas(study)}
    assert rows["mlp"]["difference"] == "-50.0 points"
    assert rows["mlp"]["p"] == "<\N{NO-BREAK SPACE}0.001"
    assert rows["mlp"]["kept"] == "8.3 of 58.3 points"
    assert rows["quality"]["kept"] == ""
    assert rows["efficient"]["interval"].startswith("95 % interval -")
    assert rows["quality"]["difference"] == ""


def test_unfinished_study_has_no_result(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    assert result_context(make_study(project, dataset, base_model), {}) == {}


def test_arms_are_ordered_by_lowest_loss(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    table: Table = {
        "base": {0: [3.0, 3.2]},
        "efficient": {seed: [1.0, 1.2] for seed in SEEDS},
        "quality": {seed: [0.9, 1.0] for seed in SEEDS},
    }
    study = conclude(make_study(project, dataset, base_model, metric="loss"), table)
    plot = study_charts.intervals(study)
    assert [row["name"] for row in plot["rows"]][:2] == ["quality", "efficient"]
    assert plot["rows"][0]["words"].startswith("0.950 (")


def test_dominated_arm_is_grey(study: Study) -> None:
    picture = study_charts.pareto(study, "trainable_parameters")
    assert picture
    assert {mark["name"]: mark["is_dominated"] for mark in picture["marks"]} == {
        "efficient": False,
        "mlp": True,
        "quality": False,
    }
    assert picture["tied"]["names"] == "efficient"


def test_no_arm_is_dominated_with_two_seeds(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    queued = make_study(project, dataset, base_model, slugs=("efficient", "mlp", "quality"), seeds=[1, 2])
    picture = study_charts.pareto(conclude(queued, TABLE), "trainable_parameters")
    assert picture
    assert not picture["has_dominated"]


def test_only_measured_costs_are_offered(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    address = study.get_absolute_url()
    assert "Time per token to the right" in client.get(address, {"cost": "ms_per_token"}).content.decode()
    # Older evaluations did not measure it: neither a button nor a column, and the address falls back.
    Evaluation.objects.update(metrics={})
    page = client.get(address, {"cost": "ms_per_token"}).content.decode()
    assert "Time per token" not in page
    assert "Trainable parameters to the right" in page


def test_equal_settings_are_hidden_by_default(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    few = client.get(study.get_absolute_url()).content.decode()
    assert "settings are the same for all" in few
    every = client.get(study.get_absolute_url(), {"only": "all"}).content.decode()
    assert every.count("<tr>") > few.count("<tr>")


def test_validation_curve_is_mean_and_range_over_seeds(study: Study) -> None:
    runs = study.arms.get(name="mlp").final_runs()
    for run, shift in zip(runs, (0.0, 0.1, 0.5), strict=True):
        MetricSeries.objects.append(run, "validation/loss", [(5, 2.0 + shift), (10, 1.0 + shift)])
    losses = MetricSeries.objects.filter(run__in=runs, name="validation/loss")
    band = study_charts.band_of([dict(series.points()) for series in losses])
    assert [step for step, *_values in band] == [5, 10]
    assert band[0][1:] == pytest.approx((2.2, 2.0, 2.5))
    assert band[1][1:] == pytest.approx((1.2, 1.0, 1.5))
    curves = study_charts.validation_curves(study)
    assert curves
    assert [line["name"] for line in curves["lines"]] == ["mlp"]


def test_arm_with_too_few_seeds_leaves_other_verdicts(
    project: Project, dataset: Dataset, base_model: BaseModel, study: Study
) -> None:
    said = verdict_sentence(study)
    queued = make_study(project, dataset, base_model, slugs=("efficient", "mlp", "quality"), margin=0.06)
    lost = queued.runs().filter(study_arm__name="mlp").earliest("pk")
    lost.end(TrainingRun.Outcome.FAILED, step=3, code="diverged", message="The loss was no number.")
    conclude(queued, TABLE)
    few = Study.objects.with_facts().get(pk=queued.pk)
    assert {one.arm: one.outcome for one in few.result.comparisons} == {
        "efficient": "not_inferior",
        "mlp": "indicative_only",
    }
    assert verdict_sentence(few).split(". ")[0] == said.split(". ")[0]
    assert recommended_arm(few) == few.result.recommended == "efficient"
    assert "Fewer than three seeds, so indicative only: mlp." in unmeasured(few)
    assert "indicative" not in " ".join(unmeasured(study))


def test_arm_with_too_few_seeds_is_not_called_worse(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    worse = {**TABLE, "efficient": TABLE["mlp"]}
    queued = make_study(project, dataset, base_model, slugs=("efficient", "mlp", "quality"))
    lost = queued.runs().filter(study_arm__name="mlp").earliest("pk")
    lost.end(TrainingRun.Outcome.FAILED, step=3, code="diverged", message="The loss was no number.")
    conclude(queued, worse)
    few = Study.objects.with_facts().get(pk=queued.pk)
    assert verdict_sentence(few).startswith("No arm can be recommended over quality: ")
    assert " Worse by more than the margin: efficient, -50.0 points (" in verdict_sentence(few)
    assert verdict_sentence(few).endswith("Fewer than three seeds, so indicative only: mlp.")
    assert recommended_arm(few) == ""


def test_failed_arm_changes_no_number_of_the_others(
    client: Client, vera: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    without = conclude(make_study(project, dataset, base_model), TABLE)
    beside = make_study(project, dataset, base_model, slugs=("efficient", "mlp", "quality"))
    for run in beside.runs().filter(study_arm__name="mlp"):
        run.end(TrainingRun.Outcome.FAILED, step=3, code="diverged", message="The loss was no finite number.")
    beside = conclude(beside, TABLE)
    assert beside.state == "succeeded"
    assert (beside.result.base, beside.result.items) == (without.result.base, without.result.items)
    for mine, other in zip(beside.result.comparisons, without.result.comparisons, strict=True):
        assert (mine.difference, mine.low, mine.high, mine.p_adjusted) == (
            other.difference,
            other.low,
            other.high,
            other.p_adjusted,
        )
    client.force_login(vera)
    page = client.get(beside.get_absolute_url()).content.decode()
    assert "Failed: The loss was no finite number." in page
    assert verdict_sentence(beside).endswith("No result: mlp.")


def test_row_without_a_finite_score_is_left_out(study: Study) -> None:
    evaluation = Evaluation.objects.of_study(study).latest("pk")
    item = evaluation.items.earliest("row")
    item.scores["exact_match"] = None
    item.save()
    assert result_of(study).items == ROWS - 1


def test_unmeasured_names_unequal_sizes(study: Study) -> None:
    sizes = {arm.name: arm.final_runs()[0].forecast["trainable_parameters"] for arm in study.arms.all()}
    times = f"{sizes['quality'] / sizes['efficient']:.1f}"
    said = unmeasured(study)
    assert any(
        f"at equal rank, quality has {times} times the parameters of efficient." in text for text in said
    )
    assert not any("different rules" in text for text in said)


def test_unmeasured_names_different_scaling(study: Study) -> None:
    arm = study.arms.get(name="mlp")
    arm.hyperparameters["lora_alpha"] = arm.hyperparameters["r"]
    arm.save()
    assert any("different rules" in text for text in unmeasured(Study.objects.get(pk=study.pk)))


def test_unmeasured_names_seeds_that_disagree(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    apart = {**TABLE, "efficient": {1: [1] * 60, 2: [0] * 60, 3: [1, 0] * 30}}
    study = conclude(make_study(project, dataset, base_model), apart)
    assert any("seeds disagree more" in text for text in unmeasured(study))
