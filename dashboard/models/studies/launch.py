"""The launch of a study: check the plan, freeze it, and queue the first job."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.db import transaction
from django.utils.translation import gettext as _

from dashboard.models.accounts.project import Project
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.jobs.compute_budget import require_budget
from dashboard.models.jobs.worker_node import require_4bit_worker
from dashboard.models.studies.advance import queue_next
from dashboard.models.studies.forecast import plan_forecast
from dashboard.models.studies.plan import (
    DEFAULT_MARGIN,
    DEFAULT_SEEDS,
    TEST_ROWS,
    ArmPlan,
    check_hours,
    check_metric,
    check_plan,
    resolve_reference,
    with_equal_parameters,
    with_rate,
)
from dashboard.models.studies.study import Study

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User


def launch_study(
    *,
    project: Project,
    by: User | None,
    dataset_version: DatasetVersion,
    base_model: BaseModel,
    arms: Sequence[ArmPlan],
    name: str = "",
    seeds: Sequence[int] = DEFAULT_SEEDS,
    budget: str = "equal-rank",
    metric: str = "",
    pattern: str = "",
    reference: str = "",
    margin: float = DEFAULT_MARGIN,
    learning_rates: Sequence[float] = (),
    test_rows: int = TEST_ROWS,
    max_hours: float | None = None,
    reuse: bool = True,
    confirmed: bool = False,
    idempotency_key: str = "",
) -> Study:
    """Freeze the plan and queue its first job, in one transaction.

    `confirmed`: `by` has accepted the warnings about the arms' target modules. Raises SpecError, which names
    the field, TargetError, or OverBudget.
    """
    metric = metric or dataset_version.main_metric
    check_plan(arms, seeds, learning_rates, margin, metric)
    check_hours(max_hours)
    reference = resolve_reference(arms, reference)
    check_metric(metric, pattern, dataset_version)
    if arms[0].hyperparameters.load_in_4bit:
        require_4bit_worker()
    study = Study(
        project=project,
        created_by=by,
        name=name or _("Study of %(dataset)s") % {"dataset": dataset_version.dataset.name[:100]},
        dataset_version=dataset_version,
        base_model=base_model,
        budget=budget,
        metric=metric,
        pattern=pattern,
        margin=margin,
        seeds=list(seeds),
        learning_rates=sorted(learning_rates),
        test_rows=test_rows,
        max_hours=max_hours,
        reuse=reuse,
        confirmed_by=by if confirmed else None,
    )
    if len(learning_rates) == 1:
        arms, study.learning_rates = with_rate(arms, learning_rates[0]), []
    if budget == Study.Budget.EQUAL_PARAMETERS:
        arms = with_equal_parameters(arms, base_model)
    with transaction.atomic():
        study.save()
        for position, arm in enumerate(arms):
            study.arms.create(
                position=position,
                name=arm.name,
                is_reference=arm.name == reference,
                target_module_config=arm.config,
                hyperparameters=dataclasses.asdict(arm.hyperparameters),
            )
        queue_next(study, idempotency_key=idempotency_key)
        plan = plan_forecast(
            base_model,
            dataset_version,
            arms,
            seeds=len(study.seeds),
            rates=len(study.learning_rates),
            test_rows=test_rows,
            metric=metric,
            pattern=pattern,
        )
        study.forecast_seconds, study.forecast = plan.promised, plan.to_dict()
        study.save(update_fields=["forecast_seconds", "forecast"])
        require_budget(project, study.whole_forecast, by)
    return study
