"""The choices of a launch form, read once per request, and the field that chooses among rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from django import forms
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F, Q

from dashboard.models import (
    BaseModel,
    Caller,
    DatasetVersion,
    Project,
    State,
    TargetModuleConfig,
    WorkerNode,
)
from dashboard.models.accounts.project import parse_id, readable_ids

RowT = TypeVar("RowT", bound=models.Model)


@dataclass(frozen=True)
class Offer:
    """The ready datasets, base models and target modules of a project that the caller may see.

    `configs` has all versions; a cloned run may have one that is no longer offered.
    """

    versions: list[DatasetVersion]
    base_models: list[BaseModel]
    configs: list[TargetModuleConfig]
    has_4bit: bool

    @classmethod
    def load(cls, caller: Caller, project: Project) -> Offer:
        """Read the rows without what only the chosen ones are asked for."""
        # Asked once: rows of a project that the caller may not read are left out.
        own = [pk for pk in readable_ids(caller) if pk == project.pk]
        here = Q(project=None) | Q(project__in=own)
        versions = DatasetVersion.objects.filter(project__in=own).select_related("dataset").defer("report")
        base_models = BaseModel.objects.filter(here).order_by(F("project").asc(nulls_first=True), "pk")
        return cls(
            imported(versions),
            imported(base_models),
            list(TargetModuleConfig.objects.filter(here)),
            WorkerNode.objects.supporting_4bit().exists(),
        )

    @cached_property
    def current_configs(self) -> list[TargetModuleConfig]:
        """Return those that no newer version has replaced."""
        newest: dict[tuple[int | None, str], int] = {}
        for config in self.configs:
            key = (config.project_id, config.name)
            newest[key] = max(config.version, newest.get(key, 0))
        return [
            config
            for config in self.configs
            if config.project_id is None or config.version == newest[config.project_id, config.name]
        ]


def imported(rows: models.QuerySet[RowT]) -> list[RowT]:
    """Return the rows whose job has succeeded; of the jobs the state alone is read."""
    # Asked here, because databases would start from all jobs that have succeeded.
    found: Any = rows.annotate(job_state=F("job__state"))
    return [row for row in found if row.job_state == State.SUCCEEDED]


class RowField(forms.ChoiceField):
    """A choice among rows that are loaded already."""

    def __init__(self, *, empty_label: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.empty_label = empty_label
        self.rows: dict[int, models.Model] = {}

    def offer(self, rows: Iterable[models.Model]) -> None:
        """Set the rows to choose from."""
        self.rows = {row.pk: row for row in rows}
        labels = [(pk, self.label_from_instance(row)) for pk, row in self.rows.items()]
        self.choices = [*([("", self.empty_label)] if self.empty_label else []), *labels]

    def label_from_instance(self, obj: Any) -> str:
        return str(obj)

    def to_python(self, value: Any) -> Any:
        """Return the chosen row; None without a choice."""
        if value in self.empty_values:
            return None
        key = parse_id(str(value))
        if key not in self.rows:
            message = self.error_messages["invalid_choice"]
            raise ValidationError(message, code="invalid_choice", params={"value": value})
        return self.rows[key]

    def validate(self, value: Any) -> None:
        """Require a choice; whether it is offered says `to_python`."""
        forms.Field.validate(self, value)
