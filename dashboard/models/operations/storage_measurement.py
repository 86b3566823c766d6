"""Measures disk use in small steps and stores it as StorageUse rows.

`measure()` yields after each entry. Only the dispatcher runs it, because a disk may be large or slow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from dashboard.models.adapters.adapter import Adapter
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.evaluations.judge_evaluation import JudgeEvaluation
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import TERMINAL
from dashboard.models.operations.data_folder import batches, entries, is_plain_folder, job_number, size
from dashboard.models.operations.storage import StorageUse
from dashboard.models.training.training_run import TrainingRun

Kind = StorageUse.Kind
LARGEST = 5


@dataclass
class Owners:
    """The projects that an entry belongs to, with a title and an address for each."""

    projects: dict[int | None, tuple[str, str]] = field(default_factory=dict)
    is_removable: bool = False  # by a clean-up


class Tally:
    """Sums by kind and project; project 0 is the whole installation."""

    def __init__(self) -> None:
        self.uses = {(kind, 0): StorageUse(kind=kind) for kind in Kind}

    def add(self, kind: Kind, size: int, owners: Owners) -> None:
        """Count an entry for the installation and for each project."""
        for project in {None, *owners.projects}:
            use = self.uses.setdefault((kind, project or 0), StorageUse(kind=kind, project_id=project))
            use.bytes += size
            use.count += 1
            use.removable_bytes += size if owners.is_removable else 0
            use.removable_count += 1 if owners.is_removable else 0
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
        name: Owners({jobs[number].project_id: titles.get(number, (str(jobs[number]), ""))})
        for name, number in numbers.items()
        if number in jobs
    }


def owners_of_checkpoints(names: list[str]) -> dict[str, Owners]:
    """Return the owners of checkpoint folders. Those of ended jobs are removable."""
    owners = owners_by_job(names)
    ended = set(
        Job.objects.filter(state__in=TERMINAL, pk__in=[job_number(Path(name)) for name in names]).values_list(
            "pk", flat=True
        )
    )
    for name in owners:
        owners[name].is_removable = job_number(Path(name)) in ended
    return owners


def subjects_of(jobs: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Return job -> (title, address) of its run, dataset version or evaluation."""
    numbers = list(jobs)
    versions = DatasetVersion.objects.filter(job__in=numbers).select_related("dataset").defer("report")
    judged = JudgeEvaluation.objects.filter(job__in=numbers).select_related("study", "run")
    evaluations = Evaluation.objects.filter(job__in=numbers).select_related("run")
    subjects: list[tuple[int | None, Any]] = [
        *((run.job_id, run) for run in TrainingRun.objects.filter(job__in=numbers).order_by("-pk")),
        *((version.job_id, version) for version in versions),
        *((evaluation.job_id, evaluation.subject) for evaluation in judged),
        *((evaluation.job_id, evaluation.run) for evaluation in evaluations),
    ]
    return {job or 0: (str(subject), subject.get_absolute_url()) for job, subject in subjects}


def owners_of_adapters(names: list[str]) -> dict[str, Owners]:
    """Return the owners of published adapters."""
    rows = Adapter.objects.filter(folder__in=names)
    return shared((row.folder, row.project_id, str(row), row.get_absolute_url()) for row in rows)


def owners_of_datasets(names: list[str]) -> dict[str, Owners]:
    """Return the owners of imported datasets; versions with the same content share a folder."""
    rows = DatasetVersion.objects.filter(sha256__in=names).select_related("dataset").defer("report")
    return shared((row.sha256, row.project_id, str(row), row.get_absolute_url()) for row in rows)


def owners_of_uploads(names: list[str]) -> dict[str, Owners]:
    """Return the owners of uploaded files that wait for their import."""
    rows = DatasetVersion.objects.filter(upload__in=names).select_related("dataset").defer("report")
    return shared((row.upload, row.project_id, row.filename, row.get_absolute_url()) for row in rows)


def shared(rows: Iterable[tuple[str, int | None, str, str]]) -> dict[str, Owners]:
    """Group (name, project, title, address) by name."""
    owners: dict[str, Owners] = defaultdict(Owners)
    for name, project, title, address in rows:
        owners[name].projects[project] = title, address
    return owners


def owners_of_archives(names: list[str]) -> dict[str, Owners]:
    """Return the owners of prepared downloads, which are removable."""
    numbers = {name: int(number) for name in names if (number := name.partition("-")[0]).isdecimal()}
    rows = Adapter.objects.in_bulk(numbers.values())
    return {
        name: Owners({row.project_id: (row.archive_name(), row.get_absolute_url())}, is_removable=True)
        for name, number in numbers.items()
        if (row := rows.get(number))
    }


OWNERS: dict[Kind, Callable[[list[str]], dict[str, Owners]]] = {
    Kind.CHECKPOINTS: owners_of_checkpoints,
    Kind.WORK: owners_by_job,
    Kind.LOGS: owners_by_job,
    Kind.ADAPTERS: owners_of_adapters,
    Kind.DATASETS: owners_of_datasets,
    Kind.UPLOADS: owners_of_uploads,
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
