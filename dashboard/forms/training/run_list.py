"""The parameters of a list of runs or adapters: filters, order and columns, all in the address."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import forms
from django.db.models import Q
from django.http import QueryDict
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models import Adapter, BaseModel, Dataset, Project, Study, TargetModuleConfig, User
from dashboard.models.catalog.metrics import METRICS
from dashboard.models.evaluations.run_list import NEWEST, SORTS, STATES, RunFilter, RunOrder
from dashboard.models.training.tag import TAG_LETTERS

SORT_CHOICES = [(f"{sign}{key}", f"{sign}{key}") for key in SORTS for sign in ("", "-")]
WORDS = ("state", "q", "tag", "stage", "metric")
# Fields whose value is a row.
ROWS = ("base_model", "dataset", "target_module_config", "created_by", "study")
UNKNOWN_SORT = gettext_lazy("`sort` must be one of %(names)s, with - in front for the opposite order.")


def row_choice(label: Any, refusal: Any) -> forms.ModelChoiceField[Any]:
    """Return a field for the id of a row; the form sets the rows."""
    errors = {"invalid_choice": refusal}
    return forms.ModelChoiceField(
        queryset=None, required=False, label=label, empty_label=gettext_lazy("All"), error_messages=errors
    )


class RunListForm(forms.Form):
    """Filters, order and columns. A wrong value is named in `errors`, and the list ignores it."""

    q = forms.CharField(required=False, max_length=120, label=gettext_lazy("Name contains"))
    state = forms.ChoiceField(
        required=False,
        label=gettext_lazy("State"),
        choices=[("", gettext_lazy("All")), *STATES.items()],
        error_messages={"invalid_choice": gettext_lazy("There is no state “%(value)s”.")},
    )
    stage = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Stage"),
        choices=[("", gettext_lazy("All")), *Adapter.Stage.choices],
        error_messages={"invalid_choice": gettext_lazy("There is no stage “%(value)s”.")},
    )
    base_model = row_choice(
        gettext_lazy("Base model"), gettext_lazy("There is no such base model in this project.")
    )
    dataset = row_choice(gettext_lazy("Dataset"), gettext_lazy("There is no such dataset in this project."))
    target_module_config = row_choice(
        gettext_lazy("Target modules"), gettext_lazy("There are no such target modules in this project.")
    )
    created_by = row_choice(
        gettext_lazy("Started by"), gettext_lazy("This project has no member with this number.")
    )
    study = row_choice(gettext_lazy("Study"), gettext_lazy("There is no such study in this project."))
    tag = forms.CharField(required=False, max_length=TAG_LETTERS, label=gettext_lazy("Tag"))
    metric = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Metric"),
        choices=[("", gettext_lazy("All")), *((name, one.label) for name, one in METRICS.items())],
        error_messages={"invalid_choice": gettext_lazy("There is no metric “%(value)s”.")},
    )
    min = forms.FloatField(required=False, label=gettext_lazy("from"))
    max = forms.FloatField(required=False, label=gettext_lazy("to"))
    sort = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Order"),
        choices=SORT_CHOICES,
        error_messages={"invalid_choice": UNKNOWN_SORT % {"names": ", ".join(SORTS)}},
    )
    columns = forms.MultipleChoiceField(
        required=False,
        label=gettext_lazy("Columns"),
        error_messages={"invalid_choice": gettext_lazy("There is no column “%(value)s”.")},
    )

    def __init__(self, data: QueryDict, *, project: Project, columns: Iterable[str] = ()) -> None:
        super().__init__(data, auto_id="filter-%s")
        shared = Q(project=None) | Q(project=project)
        rows: dict[str, Any] = {
            "base_model": BaseModel.objects.filter(shared).only("name", "revision"),
            "dataset": Dataset.objects.filter(project=project).only("name"),
            "target_module_config": TargetModuleConfig.objects.filter(shared).only("name", "version"),
            "created_by": User.objects.filter(memberships__project=project),
            "study": Study.objects.filter(project=project).only("name"),
        }
        for name, queryset in rows.items():
            self.fields[name].queryset = queryset  # type: ignore[attr-defined]
        self.fields["columns"].choices = [(key, key) for key in columns]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        """Require a metric for its limits, and limits that leave room."""
        values = super().clean() or self.cleaned_data
        low, high = values.get("min"), values.get("max")
        if (low is not None or high is not None) and not values.get("metric") and "metric" not in self.errors:
            self.add_error("metric", _("Choose the metric that `min` and `max` limit."))
        if low is not None and high is not None and low > high:
            self.add_error("max", _("`max` must not be below `min`."))
        return values

    def run_filter(self, *, has_adapter: bool = False) -> RunFilter:
        """Return the filter of all valid values."""
        values = self.cleaned_data
        chosen: dict[str, Any] = {name: values.get(name, "") for name in WORDS}
        chosen |= {name: getattr(values.get(name), "pk", None) for name in ROWS}
        return RunFilter(
            **chosen,
            low=values.get("min"),
            high=values.get("max"),
            has_adapter=has_adapter,
        )

    def order(self) -> RunOrder:
        """Return the order; the newest first by default."""
        return RunOrder.parse(self.cleaned_data.get("sort") or NEWEST)

    @property
    def is_filtered(self) -> bool:
        """Return whether a valid filter is set."""
        return self.run_filter() != RunFilter()

    def address(self) -> str:
        """Return the valid parameters as a query, without the page."""
        kept = QueryDict(mutable=True)
        for name in self.fields:
            if name not in self.errors:
                kept.setlist(name, [value for value in self.data.getlist(name) if value])  # type: ignore[attr-defined]
        return kept.urlencode()
