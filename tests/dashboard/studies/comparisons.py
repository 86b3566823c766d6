"""Runs with chosen scores of single rows, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dashboard.models import Adapter, BaseModel, Dataset, Evaluation, Project, TrainingRun, User
from tests.conftest import finish, make_run
from tests.dashboard.conftest import publish


def score(
    adapter: Adapter, values: Sequence[float], base: Sequence[float] | None = None, first_row: int = 1
) -> None:
    """End an evaluation of the adapter with these exact matches, row by row."""
    finish(Evaluation.objects.submit(adapter, None))
    for evaluation in adapter.run.evaluations.filter(rows=None):
        is_base = evaluation.subject == Evaluation.Subject.BASE
        chosen = (base if base is not None else [0.0] * len(values)) if is_base else values
        items = [
            {
                "row": row,
                "system": "",
                "prompt": f"question {row}",
                "expected": "yes",
                "output": "yes" if value else f"answer of {adapter.run.name}",
                "scores": {"exact_match": float(value), "loss": 2.0 - float(value)},
            }
            for row, value in enumerate(chosen, first_row)
        ]
        mean = sum(chosen) / len(chosen)
        evaluation.record_result(len(items), {"exact_match": mean, "loss": 2.0 - mean}, items)


def rights(share: float, count: int = 60, seed: int = 0) -> list[float]:
    """Return scores of 0 or 1 with about this share of ones."""
    return [float(value) for value in np.random.default_rng(seed).random(count) < share]


def scored_runs(
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    by: User,
    arms: Mapping[str, Sequence[Sequence[float]]],
) -> list[TrainingRun]:
    """Make one run for each list of scores, with seeds 1, 2, …; arms differ in their learning rate."""
    runs = []
    for place, (name, by_seed) in enumerate(arms.items(), 1):
        for seed, values in enumerate(by_seed, 1):
            run = make_run(
                project, dataset, base_model, by=by, name=name, seed=seed, learning_rate=place * 1e-4
            )
            score(publish(run), values)
            runs.append(run)
    return list(
        TrainingRun.objects.with_facts().with_scores().filter(pk__in=[run.pk for run in runs]).order_by("pk")
    )
