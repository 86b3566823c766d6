"""Measures disk use in small steps and stores it as StorageUse rows.

`measure()` yields after each entry. Only the dispatcher runs it, because a disk may be large or slow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, models, transaction

from dashboard.models.adapters.adapter import Adapter
from dashboard.models.adapters.export import Export
from dashboard.models.adapters.hub_push import HubPush
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.jobs.job import Job
from dashboard.models.operations.data_folder import batches, entries, is_plain_folder, job_number, size
from dashboard.models.operations.storage import StorageUse
from dashboard.models.training.training_run import TrainingRun

Kind = StorageUse.Kind
LARGEST = 5
# Deleted by a clean-up, unless a job still needs it.
REMOVABLE = (Kind.CHECKPOINTS, Kind.ARCHIVES)
VERSIONS = DatasetVersion.objects.select_related("dataset").defer("report")


@dataclass
class Owners:
    """The projects that an entry belongs to, with a title and an address for each."""

    projects: dict[int | None, tuple[str, str]] = field(default_factory=dict)
    is_in_use: bool = False  # by a job that has not ended


class Tally:
    """Sums by kind and project; project 0 is the whole installation."""

    def __init__(self) -> None:
        self.uses = {(kind, 0): StorageUse(kind=kind) for kind in Kind}

    def add(self, kind: Kind, size: int, owners: Owners) -> None:
        """Count an entry for the installation and for each project."""
        is_removable = kind in REMOVABLE and owners.projects and not owners.is_in_use
        for project in {None, *owners.projects}:
            use = self.uses.setdefault((kind, project or 0), StorageUse(kind=kind, project_id=project))
            use.bytes += size
            use.count += 1
            use.removable_bytes += size if is_removable else 0
            use.removable_count += 1 if is_removable else 0
            # Only projects list their largest entries: administrators need not see what a project works on.
            if project is not None:
                use.biggest.append([*owners.projects[project], size])
                use.biggest = sorted(use.biggest, key=lambda entry: -entry[2])[:LARGEST]

    def store(self) -> None:
        """Replace the last measurement."""
        with transaction.atomic():
            StorageUse.objects.all().delete()
            StorageUse.objects.bulk_create(self.uses.values())


def measure() -> Iterator[None]:
    """Measure the data folder once."""
    tally = Tally()
    for kind, owners_of in OWNERS.items():
        for batch in batches(entries(kind)):
            owners = owners_of([path.name for path in batch])
            for path in batch:
                tally.add(kind, size(path), owners.get(path.name, Owners()))
                yield
    yield from measure_shared_files(tally)
    tally.store()


def owners_by_job(names: list[str]) -> dict[str, Owners]:
    """Return the owners of entries that are named after jobs."""
    numbers = {name: job_number(Path(name)) for name in names}
    jobs = Job.objects.in_bulk(numbers.values())
    titles = subjects_of(jobs)
    return {
        name: Owners({job.project_id: titles.get(number, (str(job), ""))}, is_in_use=not job.is_over)
        for name, number in numbers.items()
        if (job := jobs.get(number))
    }


def subjects_of(jobs: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Return job -> (title, address) of its run, dataset version, export or evaluation."""
    numbers = list(jobs)
    versions = VERSIONS.filter(job__in=numbers)
    evaluations = Evaluation.objects.filter(job__in=numbers).select_related("run")
    exported = Export.objects.filter(job__in=numbers).select_related("adapter")
    pushed = HubPush.objects.filter(job__in=numbers).select_related("adapter")
    judged = Evaluation.objects.filter(judge_job__in=numbers).select_related("run")
    subjects: list[tuple[int | None, Any]] = [
        *((run.job_id, run) for run in TrainingRun.objects.filter(job__in=numbers).order_by("-pk")),
        *((version.job_id, version) for version in versions),
        *((export.job_id, export) for export in exported),
        *((push.job_id, push) for push in pushed),
        *((evaluation.judge_job_id, evaluation.run) for evaluation in judged),
        *((evaluation.job_id, evaluation.run) for evaluation in evaluations),
    ]
    return {job or 0: (str(subject), subject.get_absolute_url()) for job, subject in subjects}


def owners_by_field(rows: models.QuerySet[Any], field: str, names: list[str]) -> dict[str, Owners]:
    """Return the owners of entries that a field of their rows names; versions of equal content share one."""
    owners: dict[str, Owners] = defaultdict(Owners)
    for row in rows.filter(**{f"{field}__in": names}):
        owners[getattr(row, field)].projects[row.project_id] = str(row), row.get_absolute_url()
    return owners


def owners_of_archives(names: list[str]) -> dict[str, Owners]:
    """Return the owners of prepared downloads."""
    numbers = {name: int(number) for name in names if (number := name.partition("-")[0]).isdecimal()}
    rows = Adapter.objects.in_bulk(numbers.values())
    return {
        name: Owners({row.project_id: (row.archive_name(), row.get_absolute_url())})
        for name, number in numbers.items()
        if (row := rows.get(number))
    }


OWNERS: dict[Kind, Callable[[list[str]], dict[str, Owners]]] = {
    Kind.CHECKPOINTS: owners_by_job,
    Kind.WORK: owners_by_job,
    Kind.LOGS: owners_by_job,
    Kind.ADAPTERS: partial(owners_by_field, Adapter.objects.all(), "folder"),
    Kind.EXPORTS: partial(owners_by_field, Export.objects.select_related("adapter"), "folder"),
    Kind.DATASETS: partial(owners_by_field, VERSIONS, "sha256"),
    Kind.UPLOADS: partial(owners_by_field, VERSIONS, "upload"),
    Kind.ARCHIVES: owners_of_archives,
}


def measure_shared_files(tally: Tally) -> Iterator[None]:
    """Measure files of no project: base models, the database and other files."""
    for path in [*entries("models"), *entries("hub"), Path(settings.BUNDLED_MODEL_DIR)]:
        if path.exists():
            tally.add(Kind.MODELS, size(path), Owners())
        yield
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_database_size(current_database())")
            tally.add(Kind.DATABASE, cursor.fetchone()[0], Owners())
    database = Path(settings.DATABASES["default"]["NAME"]).name
    for path in entries("."):
        is_file = not is_plain_folder(path)
        if path.name.startswith(database) and is_file and connection.vendor == "sqlite":
            tally.add(Kind.DATABASE, size(path), Owners())
        elif path.name not in {*OWNERS, "models", "hub"}:
            tally.add(Kind.OTHER, size(path), Owners())
        yield
