"""A study with a run that stopped without a result: the report names what is missing."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard.models import BaseModel, Dataset, Job, Project, Study, TrainingRun, User
from dashboard.models.studies.limits import cut_short, unmeasured
from tests.dashboard.studies.factories import conclude, end_training, make_study
from tests.dashboard.studies.results.test_study_result import TABLE


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Three arms, three seeds; nobody has begun."""
    return make_study(project, dataset, base_model, by=ed, slugs=("efficient", "mlp", "quality"), margin=0.06)


def runs_of(study: Study, arm: str) -> list[TrainingRun]:
    return list(study.runs().filter(study_arm__name=arm).order_by("pk"))


def end_alone(run: TrainingRun) -> None:
    """End a run without a result, as one that stops before its first validation does."""
    run.end("cancelled", step=0)


def fetched(study: Study) -> Study:
    return Study.objects.with_facts().get(pk=study.pk)


def test_page_and_report_say_which_run_has_no_result(
    client: Client, vera: User, study: Study, ed: User
) -> None:
    end_alone(runs_of(study, "mlp")[1])
    conclude(study, TABLE)
    study = fetched(study)
    assert study.state == "succeeded"
    words = "Stopped, so without a result: mlp with seed 2."
    assert words in unmeasured(study)
    seeds = {one.arm: one.seeds for one in study.result.comparisons}
    assert seeds == {"efficient": [1, 2, 3], "mlp": [1, 3]}
    client.force_login(vera)
    for address in (study.get_absolute_url(), f"{study.get_absolute_url()}report/"):
        assert words in client.get(address).content.decode()


def test_an_arm_each_run_of_which_was_stopped_stays_in_the_table(
    client: Client, vera: User, study: Study, ed: User
) -> None:
    for run in runs_of(study, "mlp"):
        end_alone(run)
    conclude(study, TABLE)
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    assert "Stopped, so it has no result" in page
    assert [one.name for one in fetched(study).result.arms] == ["efficient", "quality"]


def test_it_says_which_run_is_compared_by_fewer_steps(study: Study) -> None:
    run = runs_of(study, "quality")[0]
    conclude(study, TABLE)
    TrainingRun.objects.filter(pk=run.pk).update(outcome="stopped_early", ended_step=4)
    (said,) = cut_short(fetched(study))
    assert said == (
        "Stopped after fewer steps than planned, and compared by the best checkpoint: quality with seed 1."
    )


def test_a_study_that_was_stopped_as_a_whole_names_no_single_run(study: Study, ed: User) -> None:
    study.request_cancel(ed)
    assert cut_short(fetched(study)) == []


def test_a_rate_whose_trial_was_stopped_is_not_chosen(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, seeds=[1], learning_rates=[1e-4, 1e-3])
    trials = runs_of(study, "efficient")
    end_alone(trials[0])
    end_training(Job.objects.get(pk=trials[0].job_id))
    fetched(study).advance()
    rates = dict(study.arms.values_list("name", "learning_rate"))
    assert rates["efficient"] == trials[1].hyperparameters["learning_rate"]
    assert study.runs().filter(rung=None).count() == 2, "both arms get their seed"
