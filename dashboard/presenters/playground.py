"""The playground's page: its columns, the models to choose from, and test rows as prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from django.conf import settings
from django.db.models import Q
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from dashboard.forms.adapters import BASE, LEAST_BLIND, MOST_COLUMNS
from dashboard.models import (
    Adapter,
    BaseModel,
    BlindComparison,
    EvaluationItem,
    Job,
    Project,
    SavedPrompt,
    Study,
    User,
)
from dashboard.models.accounts.project import parse_id
from dashboard.models.jobs.queue_forecast import format_roughly

# Adapters offered per base model; test rows and saved prompts offered as prompts.
MOST_ADAPTERS, MOST_ROWS, MOST_SAVED = 100, 20, 100


@dataclass(frozen=True)
class Column:
    """One model of the page: the base model, or an adapter."""

    value: str
    label: str
    url: str
    in_4bit: bool = False  # trained so, but it answers on the whole base model


@dataclass(frozen=True)
class ExampleRow:
    """A test row: its system prompt, its prompt and its expected answer."""

    row: int
    system: str
    prompt: str
    expected: str


@dataclass(frozen=True)
class Playground:
    """The whole page. Without a base model there is nothing to try."""

    base: BaseModel | None
    bases: Sequence[BaseModel] = ()
    columns: Sequence[Column] = ()
    choices: Sequence[tuple[str, str]] = ()
    rows: Sequence[ExampleRow] = ()
    saved: Sequence[SavedPrompt] = ()
    server: str = ""  # the host that answers instead of this installation
    trainings: int = 0  # that share the processor with the answers
    trainings_end: str = ""  # the time until all have ended, if it is known
    is_blind: bool = False

    @property
    def can_be_blind(self) -> bool:
        return len(self.columns) >= LEAST_BLIND

    @property
    def slots(self) -> list[str]:
        """Return the chosen value of each list; the empty ones come last."""
        values = [column.value for column in self.columns]
        return values + [""] * (MOST_COLUMNS - len(values))


def playground(
    project: Project, user: User, wanted_base: str, wanted: Iterable[str], *, blind: bool = False
) -> Playground:
    """Return the page for the query of its address; what does not exist is left out."""
    shown, adapters = choose_models(project, user, wanted_base, wanted)
    is_blind = blind and shown.can_be_blind
    server = settings.INFERENCE_SERVER.host if shown.base and shown.base.has_operator_server else ""
    page = replace(
        shown, rows=_rows(adapters), saved=_saved_prompts(project), is_blind=is_blind, server=server
    )
    if server:
        return page
    trainings, end = live_trainings()
    return replace(page, trainings=trainings, trainings_end=end)


def live_trainings() -> tuple[int, str]:
    """Return the number of trainings that run now, and the time until all have ended, if it is known."""
    trainings = Job.objects.live().filter(kind=Job.Kind.TRAIN).order_by()
    seconds = list(trainings.values_list("eta_seconds", flat=True))
    known = [left for left in seconds if left is not None]
    is_known = bool(seconds) and len(known) == len(seconds)
    return len(seconds), format_roughly(max(known)) if is_known else ""


def trainings_to_wait_for() -> str:
    """Return what a prompt waits for that is answered after the trainings, as a sentence; "" for nothing."""
    count, end = live_trainings()
    if not count:
        return ""
    text = ngettext(
        "Waiting until the training has ended.", "Waiting until %(count)d trainings have ended.", count
    ) % {"count": count}
    return f"{text} {_('About %(time)s left.') % {'time': end}}" if end else text


def choose_models(
    project: Project, user: User, wanted_base: str, wanted: Iterable[str]
) -> tuple[Playground, list[Adapter]]:
    """Return the models of an address and those to choose from; and the adapters among the former."""
    bases = BaseModel.objects.visible_to(user).filter(Q(project=None) | Q(project=project)).ready()
    ready = list(bases.order_by("name", "pk"))
    adapters = Adapter.objects.visible_to(user).filter(project=project, base_model__in=ready).with_facts()
    wanted = list(dict.fromkeys(wanted))
    numbers = [number for name in wanted if (number := parse_id(name)) is not None]
    chosen = {str(adapter.pk): adapter for adapter in adapters.filter(pk__in=numbers)}
    base = _base(ready, parse_id(wanted_base), next(iter(chosen.values()), adapters.first()))
    if base is None:
        return Playground(None), []
    offered = list(adapters.filter(base_model=base)[:MOST_ADAPTERS])
    by_value = {
        str(adapter.pk): adapter for adapter in [*offered, *chosen.values()] if adapter.base_model == base
    }
    names = [name for name in wanted if name == BASE or name in by_value]
    names = names or [BASE, *(str(adapter.pk) for adapter in offered[:1])]
    columns = [_column(base, by_value.get(name)) for name in names[:MOST_COLUMNS]]
    choices = [(BASE, _("Base model")), *((value, str(adapter)) for value, adapter in by_value.items())]
    shown = Playground(base, ready, columns, choices)
    return shown, [by_value[name] for name in names[:MOST_COLUMNS] if name in by_value]


def _saved_prompts(project: Project) -> list[SavedPrompt]:
    saved = SavedPrompt.objects.filter(prompt_set__project=project).select_related("prompt_set")
    return list(saved.order_by("prompt_set__name", "pk")[:MOST_SAVED])


def revealed(comparison: BlindComparison) -> list[dict[str, str]]:
    """Return name and address of the models of two blind answers, in the order in which they were shown."""
    adapters = (comparison.adapter_a, comparison.adapter_b)
    columns = [_column(comparison.base_model, adapter) for adapter in adapters]
    return [{"label": column.label, "url": column.url} for column in columns]


def try_url(adapters: Iterable[Adapter]) -> str:
    """Return the address of the playground with the base model beside adapters on it; "" without one."""
    found = list(adapters)
    same = [adapter for adapter in found if adapter.base_model_id == found[0].base_model_id]
    values = [BASE, *(str(adapter.pk) for adapter in same[: MOST_COLUMNS - 1])]
    query = urlencode({"column": values}, doseq=True)
    return f"{reverse('playground')}?{query}" if same else ""


def study_adapters(study: Study) -> list[Adapter]:
    """Return an adapter of each arm of a study, that of its first seed."""
    adapters = Adapter.objects.filter(run__study_arm__study=study).select_related("run")
    adapters = adapters.only("base_model", "run__study_arm")
    by_arm: dict[int | None, Adapter] = {}
    for adapter in adapters.order_by("run__study_arm__position", "pk"):
        by_arm.setdefault(adapter.run.study_arm_id, adapter)
    return list(by_arm.values())


def _base(ready: list[BaseModel], number: int | None, adapter: Adapter | None) -> BaseModel | None:
    """Return the base model with this number, else that of an adapter, else the first one."""
    numbers = {base.pk: base for base in ready}
    found = numbers.get(number) if number is not None else None
    if found is None and adapter is not None:
        found = numbers.get(adapter.base_model_id)
    return found or next(iter(ready), None)


def _column(base: BaseModel, adapter: Adapter | None) -> Column:
    if adapter is None:
        return Column(BASE, _("Base model"), base.get_absolute_url())
    return Column(str(adapter.pk), str(adapter), adapter.get_absolute_url(), adapter.run.in_4bit)


def _rows(adapters: Iterable[Adapter]) -> list[ExampleRow]:
    """Return the shortest test rows of the first adapter whose answers may be seen."""
    for adapter in adapters:
        arm = adapter.run.study_arm
        # The answers of a study are hidden until it has ended, and so are its rows.
        if arm is not None and not arm.study.scores_are_open:
            continue
        pairs = EvaluationItem.objects.pairs(adapter.run)
        rows = [
            ExampleRow(item.row, item.system, item.prompt, item.expected)
            for item, _other in pairs
            if item.prompt and item.system is not None
        ]
        if rows:
            return sorted(rows, key=lambda row: len(row.prompt))[:MOST_ROWS]
    return []
