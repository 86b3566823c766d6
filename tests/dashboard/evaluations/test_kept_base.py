"""The base model's scores on the same rows are computed once and kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from dashboard.models import (
    Adapter,
    ArmPlan,
    BaseModel,
    Dataset,
    Evaluation,
    EvaluationItem,
    Job,
    Project,
    Study,
    TrainingRun,
    User,
)
from dashboard.models.evaluations.evaluation import base_evaluation, run_spec
from dashboard.models.studies.forecast import plan_forecast
from tests.conftest import make_run
from tests.dashboard.conftest import publish
from tests.dashboard.studies.factories import end_training, make_study
from workers.contract.base_scores import base_scores_key
from workers.contract.hyperparameters import Hyperparameters
from workers.supervision.recorders import ResultRecorder, commit_evaluation

ROWS = 5


@pytest.fixture
def second(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Adapter:
    """The adapter of another run on the same data, with another seed."""
    return publish(make_run(project, dataset, base_model, by=ed, name="Second", seed=7))


def end(job: Job, folder: Path, dtype: str = "float32") -> None:
    """Commit what the engine reports for the job: the base model's scores too unless they are kept."""
    job.move("claim", attempt=1, worker="gpu@host")
    job.move("progress")
    spec = job.spec
    subjects = [*spec["adapters"]]
    if spec["with_base"] and f"{dtype} on cpu" not in spec["kept_formats"]:
        subjects = ["base", *subjects]
    items = [
        {
            "row": row,
            "prompt": f"p{row}",
            "expected": "e",
            "output": f"{subject} {row}",
            "scores": {"exact_match": float(row == 1)},
            "subject": subject,
        }
        for subject in subjects
        for row in range(1, ROWS + 1)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    result: dict[str, Any] = {
        "rows": ROWS,
        "dtype": dtype,
        "device": "cpu",
        "seconds": 30.0,
        "threads": 1,
        "split_sha256": "",
        "ms_per_token": dict.fromkeys(["base", *spec["adapters"]], 20.0),
        "general_questions": {
            "version": 1,
            "sha256": "q",
            "choices": 4,
            "marks": {subject: [1] for subject in subjects},
        },
        **{subject: {"exact_match": 0.2} for subject in subjects},
    }
    recorder = ResultRecorder(job, folder, commit_evaluation)
    recorder.result = result
    recorder.finish()


def scored(adapter: Adapter, folder: Path, dtype: str = "float32") -> TrainingRun:
    """Evaluate an adapter and return its run."""
    end(Evaluation.objects.submit(adapter, None), folder, dtype)
    return TrainingRun.objects.with_scores().get(pk=adapter.run_id)


def bases() -> list[Evaluation]:
    return list(Evaluation.objects.filter(subject="base").order_by("pk"))


def test_a_second_run_is_paired_with_the_kept_scores_row_by_row(
    adapter: Adapter, second: Adapter, tmp_path: Path
) -> None:
    first, later = scored(adapter, tmp_path), scored(second, tmp_path)
    (base,) = bases()
    assert base_evaluation(first) == base_evaluation(later) == base
    assert EvaluationItem.objects.count() == 3 * ROWS
    pairs = EvaluationItem.objects.pairs(later)
    assert [(one.output, other.output) for one, other in pairs] == [
        (f"base {row}", f"run-{later.pk} {row}") for row in range(1, ROWS + 1)
    ]
    assert later.scores()["base"] == first.scores()["base"] == base.metrics


def test_both_sides_are_read_by_the_api_the_samples_and_the_download(
    api: Client, adapter: Adapter, second: Adapter, tmp_path: Path
) -> None:
    scored(adapter, tmp_path)
    later = scored(second, tmp_path)
    answer = api.get(f"/api/v1/runs/{later.pk}/evaluations").json()
    assert sorted(one["subject"] for one in answer["data"]) == ["adapter", "base"]
    samples = api.get(f"/api/v1/runs/{later.pk}/samples").json()["data"]
    assert {one["base"] for one in samples} == {f"base {row}" for row in range(1, ROWS + 1)}
    report = Adapter.objects.get(pk=second.pk).evaluation_report()
    assert [one["subject"] for one in report] == ["base", "adapter"]


def test_jobs_that_ran_at_once_keep_one_result(adapter: Adapter, second: Adapter, tmp_path: Path) -> None:
    jobs = [Evaluation.objects.submit(one, None) for one in (adapter, second)]
    assert len(bases()) == 2
    for job in jobs:
        assert job.spec["with_base"]
        end(job, tmp_path)
    (base,) = bases()
    assert base.job == jobs[0]
    assert {base_evaluation(one.run) for one in (adapter, second)} == {base}


def test_another_number_format_is_scored_and_kept_as_well(
    adapter: Adapter, second: Adapter, tmp_path: Path
) -> None:
    first, later = scored(adapter, tmp_path), scored(second, tmp_path, "bfloat16")
    assert [base.number_format for base in bases()] == ["float32 on cpu", "bfloat16 on cpu"]
    assert [base_evaluation(first), base_evaluation(later)] == bases()


def test_a_failed_evaluation_keeps_nothing(adapter: Adapter, second: Adapter, tmp_path: Path) -> None:
    job = Evaluation.objects.submit(adapter, None)
    job.move("claim", attempt=1, worker="gpu@host")
    job.move("fail", error_code="worker_lost", error_message="It was lost.")
    later = scored(second, tmp_path)
    assert base_evaluation(later) == bases()[-1]
    assert base_evaluation(adapter.run) is None


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 32},
        {"max_rows": 10},
        {"split": "validation"},
        {"load_in_4bit": True},
        {"metric": "regex", "pattern": "e"},
        {"metric": "accuracy"},
        {"max_new_tokens": 8},
    ],
)
def test_other_rows_settings_and_metrics_have_scores_of_their_own(
    run: TrainingRun, change: dict[str, Any]
) -> None:
    spec = run_spec(run)
    other = dataclasses.replace(spec, **change)
    assert base_scores_key(other, 100) != base_scores_key(spec, 100)


def test_a_limit_that_leaves_out_no_row_changes_nothing(run: TrainingRun) -> None:
    spec = run_spec(run)
    every = dataclasses.replace(spec, max_rows=1000, seed=7, metric="token_f1")
    assert base_scores_key(every, 100) == base_scores_key(spec, 100)


def test_kept_scores_are_left_out_of_the_forecast(
    adapter: Adapter, second: Adapter, dataset: Dataset, base_model: BaseModel, tmp_path: Path
) -> None:
    scored(adapter, tmp_path)
    study = {"seeds": 2, "test_rows": 200, "metric": "exact_match"}

    def forecast() -> float:
        arms = [ArmPlan("efficient", second.run.target_module_config, learn)]
        return plan_forecast(base_model, dataset.newest_ready(), arms, **study).scoring["expected"]

    learn = Hyperparameters(r=4, max_length=64)
    with_kept = forecast()
    Evaluation.objects.filter(subject="base").update(key="other rows")
    assert with_kept < forecast()


def test_a_study_uses_the_scores_of_an_earlier_run(
    adapter: Adapter, project: Project, dataset: Dataset, base_model: BaseModel, ed: User, tmp_path: Path
) -> None:
    scored(adapter, tmp_path)
    study = make_study(project, dataset, base_model, by=ed, seeds=[1, 2])
    for job in study.jobs().filter(kind=Job.Kind.TRAIN):
        end_training(job)
    study.advance()
    for job in study.jobs().filter(kind=Job.Kind.EVALUATE):
        end(job, tmp_path)
    study.advance()
    (base,) = bases()
    study = Study.objects.get(pk=study.pk)
    assert Evaluation.objects.of_study(study).filter(subject="base").get() == base
    assert study.result.base is not None
    assert EvaluationItem.objects.count() == (2 + 4) * ROWS
