"""Filters and order of lists of runs and adapters in the API, as on the pages."""

from __future__ import annotations

from typing import Any

from ninja import Field

from dashboard.api.access import Call
from dashboard.api.pagination import Newest, Rows
from dashboard.api.refusals import invalid
from dashboard.forms.training.run_list import RunListForm
from dashboard.models import TrainingRun
from dashboard.models.evaluations.run_list import NEWEST, SORTS, STATES


class SortedRuns(Newest):
    """Pages of runs that match the query, in its order."""

    class Input(Newest.Input):
        """The query parameters of a list of runs."""

        q: str | None = Field(None, description="Part of the name.")
        state: str | None = Field(None, description=f"One of {', '.join(STATES)}.")
        base_model: int | None = None
        dataset: int | None = None
        target_module_config: int | None = None
        study: int | None = None
        created_by: int | None = Field(None, description="Id of the member who started it.")
        tag: str | None = None
        metric: str | None = Field(
            None, description="Metric that a run must have, and that `min` and `max` limit."
        )
        min: float | None = None
        max: float | None = None
        sort: str | None = Field(
            None,
            description=f"One of {', '.join(SORTS)}; with - in front the largest first. Without it {NEWEST}. "
            "Runs without a value come last.",
        )


class SortedAdapters(SortedRuns):
    """Pages of adapters whose runs match the query, in its order."""

    class Input(SortedRuns.Input):
        """The query parameters of a list of adapters; they refer to an adapter's run."""

        stage: str | None = Field(None, description="draft, approved or retired.")


def listed(request: Call, runs: Any, *, has_adapter: bool = False, **options: Any) -> Rows:
    """Return the rows of `runs` that match the query, in its order; refuse wrong values."""
    form = RunListForm(request.GET, project=request.auth.project)
    for field, errors in form.errors.items():
        raise invalid(field, str(errors[0]))
    matching = form.run_filter(has_adapter=has_adapter).apply(
        TrainingRun.objects.filter(project=request.auth.project)
    )
    order = form.order()
    return Rows(
        runs,
        keys=lambda limit, after: order.keys(matching, limit, after),
        **options,
    )
