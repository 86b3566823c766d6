"""The sentences of a verdict: what is decided first, then what is open."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dashboard.models import BaseModel, Dataset, Project, Study, User
from dashboard.models.studies.results.result import ArmComparison, ArmResult, StudyResult
from dashboard.models.studies.results.verdict_sentence import (
    advised_seeds,
    outcome_label,
    recommended_arm,
    verdict_sentence,
)
from tests.dashboard.studies.factories import conclude, make_study
from workers.statistics.verdicts import Estimate

ARMS = ("efficient", "mlp", "quality")
OPEN = ArmComparison(
    position=0,
    arm="efficient",
    reference="quality",
    difference=-0.011,
    low=-0.035,
    high=0.013,
    p=0.4,
    p_adjusted=0.4,
    p_margin_adjusted=0.2,
    alpha=0.04,
    look=1,
    outcome="not_enough_evidence",
    seeds=[1, 2, 3],
    seeds_disagree=False,
    further_seeds=None,
    kept=None,
)
AS_GOOD = replace(OPEN, low=-0.021, high=-0.001, p_adjusted=0.045, outcome="not_inferior")
WORSE = replace(OPEN, difference=-0.08, low=-0.1, high=-0.06, p_adjusted=0.0, outcome="inferior")
BETTER = replace(OPEN, difference=0.04, low=0.01, high=0.07, p_adjusted=0.01, outcome="better")


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Three arms and a margin of 3 points."""
    return make_study(project, dataset, base_model, by=ed, slugs=ARMS, margin=0.03)


def with_result(study: Study, efficient: ArmComparison, mlp: ArmComparison) -> Study:
    """Give the study the comparisons of its two arms with quality, whose gain is 7.2 points."""
    means = {"efficient": 0.161, "mlp": 0.15, "quality": 0.172}
    study.stored_result = StudyResult(
        metric="exact_match",
        items=1000,
        groups=1000,
        bases={"base": Estimate(0.1, 0.08, 0.12)},
        arms=[
            ArmResult(place, name, [1, 2, 3], [means[name]] * 3, Estimate(means[name], 0.1, 0.2))
            for place, name in enumerate(ARMS)
        ],
        comparisons=[efficient, replace(mlp, position=1, arm="mlp")],
    ).to_dict()
    study.__dict__.pop("result", None)
    return study


def test_recommended_arm_comes_first_with_difference_gain_and_size(study: Study) -> None:
    kept = Estimate(0.85, 0.7, 0.95)
    said = verdict_sentence(with_result(study, replace(AS_GOOD, kept=kept), WORSE))
    assert said.startswith("efficient is as good as quality within your margin of 3 points, with ")
    assert "of the parameters: difference -1.1 points (95 % interval -2.1 to -0.1). " in said
    assert "It keeps 6.1 of 7.2 points of the gain over the base model." in said
    assert said.count("efficient") == 1
    assert said.endswith("Worse by more than the margin: mlp, -8.0 points (95 % interval -10.0 to -6.0).")
    assert recommended_arm(study) == "efficient"


def test_vague_share_of_the_gain_is_left_out(study: Study) -> None:
    said = verdict_sentence(with_result(study, replace(AS_GOOD, kept=Estimate(0.85, 0.5, 1.2)), WORSE))
    assert "gain over" not in said


def test_share_above_the_whole_gain_is_all_of_it(study: Study) -> None:
    said = verdict_sentence(with_result(study, replace(AS_GOOD, kept=Estimate(1.1, 0.95, 1.25)), WORSE))
    assert "It keeps all 7.2 points of the gain over the base model." in said


def test_arm_that_is_as_good_but_certainly_worse_is_called_so(study: Study) -> None:
    certain = replace(AS_GOOD, p_adjusted=0.01)
    said = verdict_sentence(with_result(study, certain, WORSE))
    assert "It is certainly a little worse, but by less than the margin." in said
    assert outcome_label(certain) == "As good within your margin, though certainly a little worse"


def test_open_arm_is_called_worse_only_if_that_is_certain() -> None:
    one = replace(OPEN, high=-0.001, p_adjusted=0.024)
    assert outcome_label(one) == "Worse; whether within your margin is open"
    assert outcome_label(replace(one, high=0.001)) == "Not enough evidence"
    # Without the correction for the number of arms it would be certain; with it, it is not.
    assert outcome_label(replace(one, p_adjusted=0.06)) == "Not enough evidence"
    assert outcome_label(replace(one, outcome="indicative_only")) == "Indicative only"


def test_better_arm_is_named_with_its_lead(study: Study) -> None:
    said = verdict_sentence(with_result(study, BETTER, AS_GOOD))
    assert said.startswith("efficient is better than quality by 4 points (95 % interval +1.0 to +7.0), with ")
    assert "Also as good within the margin: mlp, -1.1 points (95 % interval -2.1 to -0.1)." in said


def test_all_arms_worse(study: Study) -> None:
    said = verdict_sentence(with_result(study, WORSE, WORSE))
    assert said.startswith(
        "Every other arm is worse than quality by more than your margin of 3 points. Worse"
    )
    assert recommended_arm(study) == "quality"


def test_open_arms_follow_with_what_would_decide_them(study: Study) -> None:
    seeds = replace(OPEN, seeds_disagree=True, further_seeds=2)
    said = verdict_sentence(with_result(study, seeds, OPEN))
    assert said == (
        "Not enough evidence to say how the arms compare with quality. "
        "Not decided: efficient, -1.1 points (95 % interval -3.5 to +1.3); "
        "mlp, -1.1 points (95 % interval -3.5 to +1.3). "
        "2 more seeds decide efficient with a probability of at least 80 %. "
        "More test rows would help mlp more than more seeds."
    )
    assert advised_seeds(study) == 2


def test_seeds_that_cannot_decide_are_not_advised(study: Study) -> None:
    hopeless = replace(OPEN, seeds_disagree=True)
    said = verdict_sentence(with_result(study, hopeless, WORSE))
    assert said.endswith("Even many more seeds would probably not decide efficient at this margin.")
    assert advised_seeds(study) is None


def test_as_good_is_no_reason_to_choose_an_arm_of_equal_size(study: Study) -> None:
    for run in study.runs():
        run.forecast["trainable_parameters"] = 1000 if run.study_arm.name == "quality" else 960
        run.save()
    found = Study.objects.with_facts().get(pk=study.pk)
    said = verdict_sentence(with_result(found, AS_GOOD, AS_GOOD))
    assert said.startswith(
        "All arms are as good as quality within your margin of 3 points, and none is smaller."
    )
    assert recommended_arm(found) == ""


def test_few_rows_are_indicative_only(project: Project, dataset: Dataset, base_model: BaseModel) -> None:
    table = {name: {seed: [1, 0] * 9 for seed in (1, 2, 3)} for name in ("efficient", "quality")}
    found = conclude(make_study(project, dataset, base_model), {**table, "base": {0: [0] * 18}})
    assert verdict_sentence(found) == (
        "Indicative only, with 18 test rows from 18 groups: efficient comes out level with quality. "
        "A verdict needs at least 20 test rows from 5 groups."
    )
