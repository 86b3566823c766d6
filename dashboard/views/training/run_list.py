"""The table of runs, and what can be done with several of them; the list of adapters is the same table."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from dashboard.downloads import csv_file
from dashboard.forms.training.run_list import RunListForm
from dashboard.gate import Request
from dashboard.models import Role, SavedView, Tag, TrainingRun
from dashboard.models.accounts.project import parse_id
from dashboard.models.evaluations.run_list import RunFilter, RunOrder, listed_runs
from dashboard.presenters import run_table
from dashboard.presenters.run_columns import ADAPTERS, RUNS, Column, RunTable

TABLES = {SavedView.Page.RUNS: RUNS, SavedView.Page.ADAPTERS: ADAPTERS}
# Names of the project's tags that the filter suggests.
TAGS_OFFERED = 200
CSV_ROWS = 100_000
SHARED_FILTERS = ("base_model", "dataset", "target_module_config", "created_by", "metric")
FILTERS = {
    SavedView.Page.RUNS: ("state", *SHARED_FILTERS),
    SavedView.Page.ADAPTERS: ("stage", *SHARED_FILTERS),
}


@require_GET
def index(request: Request) -> HttpResponse:
    """List the project's runs; filters, order and columns are in the address. A reused run is listed once."""
    return render(request, "training/index.html", list_context(request, SavedView.Page.RUNS))


@require_GET
def export(request: Request) -> HttpResponse:
    """Return the rows and columns of the list's address as CSV, with the rows of all its pages."""
    return csv_of(request, SavedView.Page.RUNS, "runs.csv")


@require_GET
def states(request: Request) -> HttpResponse:
    """Show the states of ?runs=1,2 anew: a list asks once for all of its runs that go on."""
    keys = [key for text in request.GET.get("runs", "").split(",") if (key := parse_id(text))]
    runs = run_table.with_states(TrainingRun.objects.visible_to(request.user), keys[: run_table.PAGE])
    context = {"renewed": runs, "open_runs": [run.pk for run in runs if not run.is_over]}
    return render(request, "training/list/_states.html", context)


def csv_of(request: Request, page: SavedView.Page, filename: str) -> HttpResponse:
    """Return a table as CSV."""
    form, filter_, columns = read_list(request, page)
    keys = form.order().keys(listed_runs(request.project, filter_), CSV_ROWS)
    return csv_file(filename, run_table.csv_rows(keys, columns))


def read_list(request: Request, page: SavedView.Page) -> tuple[RunListForm, RunFilter, list[Column]]:
    """Return the form of a list's address, its filter, and the columns that are shown."""
    table = TABLES[page]
    form = RunListForm(request.GET, project=request.project, columns=table.columns)
    form.full_clean()
    filter_ = form.run_filter(has_adapter=page == SavedView.Page.ADAPTERS)
    return form, filter_, table.chosen(form.cleaned_data.get("columns") or [], form.order())


def list_context(request: Request, page: SavedView.Page) -> dict[str, Any]:
    """Return everything that a list shows."""
    form, filter_, columns = read_list(request, page)
    order = form.order()
    runs, following = run_table.page_of_runs(
        request.project, filter_, order, columns, parse_id(request.GET.get("cursor", ""))
    )
    views = SavedView.objects.filter(project=request.project, page=page)
    return {
        "page": page,
        "form": form,
        "runs": runs,
        "rows": run_table.table_rows(runs, columns),
        "next": following,
        "open_runs": [run.pk for run in runs if not run.is_over],
        "headings": [heading(column, order) for column in columns],
        "columns": columns,
        "other_columns": hidden_columns(TABLES[page], columns),
        "orders": run_table.orders(order),
        "order": str(order),
        "tags": Tag.objects.filter(project=request.project)[:TAGS_OFFERED],
        "saved_views": views,
        "address": form.address(),
        "filter_fields": [(form[name], choices_of(form, name)) for name in FILTERS[page]],
        "chosen_columns": form.cleaned_data.get("columns") or [],
        "kept": [(name, value) for name, value in parse_qsl(form.address()) if name != "columns"],
        "may_edit": request.user.has_role(Role.EDITOR, request.project.pk),
    }


def choices_of(form: RunListForm, name: str) -> list[tuple[str, Any]]:
    """Return a field's choices; a template, like `list`, would count the rows of a queryset first."""
    return [(str(value), label) for value, label in form.fields[name].choices]  # type: ignore[attr-defined]


def heading(column: Column, order: RunOrder) -> dict[str, Any]:
    """Return a column's heading: the order that a click gives, and the present one in ARIA's words."""
    if column.order is None:
        return {"column": column}
    is_current = column.order.key == order.key
    opposite = RunOrder(order.key, not order.is_descending)
    return {
        "column": column,
        "next": str(opposite if is_current else column.order),
        "current": ("descending" if order.is_descending else "ascending") if is_current else "",
    }


def hidden_columns(table: RunTable, shown: list[Column]) -> list[Column]:
    """Return the columns that are offered but not shown."""
    return [column for column in table.columns.values() if column not in shown]
