"""A study as plain JSON, for the API and for files from which its verdict can be computed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dashboard.models.evaluations import forgetting
from dashboard.models.studies.looks import ending_of
from dashboard.models.studies.results.comparison import UnsavedStudy
from dashboard.models.studies.results.limits import warnings
from dashboard.models.studies.results.result import costs_of
from dashboard.models.studies.results.scores import ArmScores, RowScores, groups_of, scores_of
from dashboard.models.studies.results.verdict_sentence import verdict_sentence
from dashboard.models.studies.study import Study
from dashboard.models.training.training_run import TrainingRun

CsvRow = list[str | float | None]
# The measured values of a run that are costs.
MEASURED_COSTS = ("wall_seconds", "tokens_per_second", "peak_memory_bytes")


# What the API's answer says of a comparison.
LISTED = ("arm", "reference", "difference", "low", "high", "p_adjusted", "look", "outcome", "kept")


def study_dict(study: Study) -> dict[str, Any]:
    """Return the study without its scores, as the API answers it; after its end as it was stored."""
    return study.summary or summary_of(study)


def summary_of(study: Study) -> dict[str, Any]:
    """Assemble the API's answer from the rows of the study."""
    result = study.result
    metrics = {arm.position: asdict(arm.metric) for arm in result.arms}
    forgotten = forgetting.study_forgetting(study)
    return {
        "id": study.pk,
        "name": study.name,
        "state": study.state,
        "dataset": study.dataset_version.dataset_id,
        "test_sha256": result.test_sha256 or study.dataset_version.test_sha256 or None,
        "base_model": study.base_model_id,
        "budget": study.budget,
        "metric": study.metric,
        "pattern": study.pattern,
        "reference": study.reference,
        "margin": study.margin,
        "seeds": study.seeds,
        "max_hours": study.max_hours,
        "reuse": study.reuse,
        "additions": [
            {name: addition[name] for name in ("at", "seeds", "after_result")} for addition in study.additions
        ],
        "ending": asdict(ending) if (ending := ending_of(study)) else None,
        "arms": [
            {
                "name": arm.name,
                "target_module_config": arm.target_module_config_id,
                "learning_rate": arm.learning_rate or arm.hyperparameters.get("learning_rate"),
                "learning_rates_tried": study.learning_rates,
                "bracketed": arm.is_bracketed if arm.learning_rate is not None else None,
                **costs_of(arm.final_runs()),
                "measured_alone": arm.is_measured_alone,
                "runs": [run.pk for run in arm.final_runs()],
                "reused_from": [run.reused_from_id for run in arm.final_runs() if run.reused_from_id],
                "needs_no_seeds": bool(arm.verdict),
                "error": arm.error,
                "metric": metrics.get(arm.position),
                "forgetting": forgotten[arm.name].facts() if arm.position in metrics else None,
            }
            for arm in study.arms.all()
        ],
        "base": {"metric": asdict(result.base) if result.base else None},
        "comparisons": [
            {name: value for name, value in asdict(comparison).items() if name in LISTED}
            for comparison in result.comparisons
        ],
        "items": result.items or None,
        "groups": result.groups or None,
        "verdict": verdict_sentence(study) or None if study.is_over else None,
        "error": study.error,
    }


def general_questions(study: Study) -> list[dict[str, Any]]:
    """Return the marks of the base model and of each arm and seed on the general questions."""
    entries = []
    for place, (name, one) in enumerate(forgetting.study_forgetting(study).items()):
        # All arms have one base model beside them.
        bases = [("base", None, one.base)] if one.base and not place else []
        for arm, seed, evaluation in [
            *bases,
            *((name, adapter.run.seed, adapter) for adapter in one.adapters),
        ]:
            if evaluation.general_questions:
                entries.append({"arm": arm, "seed": seed, **evaluation.general_questions})
    return entries


def export_dict(study: Study) -> dict[str, Any]:
    """Return settings and every score, to compute the verdict again; no scores before the end."""
    rows = item_scores(study) if study.scores_are_open else []
    settings = [
        {
            "arm": arm.name,
            "seed": run.seed,
            "run": run.pk,
            "reused_from": run.reused_from_id,
            "spec": public_spec(run.spec),
            "origin": run.origin,
        }
        for arm in study.arms.all()
        for run in arm.final_runs()
    ]
    questions = general_questions(study) if study.scores_are_open else []
    return {
        "study": study_dict(study),
        "settings": settings,
        "scores": rows,
        "general_questions": questions,
    }


def item_scores(study: Study) -> list[dict[str, Any]]:
    """Return every score behind the verdict with its group; the base model has no seed."""
    (arms, base), groups = scores_of(study), groups_of(study)
    return score_rows(arms, {"base": base}, groups)


def score_rows(
    arms: Sequence[ArmScores], bases: Mapping[str, RowScores], groups: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Return one entry for each score; base models have no seed."""
    sides: list[tuple[str, int | None, RowScores]] = [(name, None, scores) for name, scores in bases.items()]
    sides += [(arm.name, seed, scores) for arm in arms for seed, scores in arm.by_seed.items()]
    return [
        {"arm": arm, "seed": seed, "item": item, "group": groups.get(item, item), "value": value}
        for arm, seed, values in sides
        for item, value in values.items()
    ]


def public_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a run's frozen settings without folders of this installation."""
    return {
        name: {key: item for key, item in value.items() if key != "path"}
        if name in ("base", "data", "validation_data") and value
        else value
        for name, value in spec.items()
    }


# Chosen runs


def comparison_dict(study: UnsavedStudy) -> dict[str, Any]:
    """Return the comparison of chosen runs with the score of every row."""
    arms, bases = study.scores()
    return {
        **study.result.to_dict(),
        "metric": study.metric,
        "lower_is_better": study.lower_is_better,
        "reference": study.reference,
        "sentence": verdict_sentence(study),
        "warnings": warnings(study),
        "forgetting": {name: one.facts() for name, one in forgetting.chosen_runs_forgetting(study).items()},
        "runs": [
            {"id": run.pk, "name": run.name, "arm": arm.name, "settings": run.flat_settings()}
            for arm in study.arm_list
            for run in [*arm.runs, *arm.repeats]
        ],
        "scores": score_rows(arms, bases, study.groups()),
    }


def comparison_rows(study: UnsavedStudy) -> list[CsvRow]:
    """Return the differences to the reference for the CSV, in the metric's unit."""
    first = {arm.name: arm.first.pk for arm in study.arm_list}
    rows: list[CsvRow] = []
    for one in study.result.comparisons:
        against: CsvRow = [first[one.arm], one.arm, f"against {one.reference}"]
        for name in ("difference", "low", "high", "p_adjusted", "outcome"):
            rows.append([*against, f"{study.metric} {name}", None, getattr(one, name)])
    for arm, forgotten in forgetting.chosen_runs_forgetting(study).items():
        for end, value in (forgotten.change() or {}).items():
            against = [first[arm], arm, "against the base model"]
            rows.append([*against, f"general_accuracy change {end}", None, value])
    return rows


def run_rows(run: TrainingRun) -> Iterator[CsvRow]:
    """Yield the rows of one run in the CSV of the Compare page."""

    def row(kind: str, measure: str, value: Any, step: int | None = None) -> CsvRow:
        return [run.pk, run.name, kind, measure, step, value]

    yield row("state", "state", run.state)
    for name, value in run.flat_settings().items():
        yield row("setting", name, value)
    for subject, metrics in run.scores().items():
        for name, value in metrics.items():
            yield row(subject, name, value)
    for name, value in run.forecast.items():
        yield row("forecast", name, value)
    for name in MEASURED_COSTS:
        if run.measured.get(name) is not None:
            yield row("cost", name, run.measured[name])
