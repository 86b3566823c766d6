"""Measures disk use in small steps and stores it as StorageUse rows.

`measure()` yields after each entry. Only the dispatcher runs it, because a disk may be large or slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from django.conf import settings
from django.db import connection, transaction

from dashboard.models.adapters.adapter import Adapter
from dashboard.models.adapters.publication import Publication
from dashboard.models.catalog.dataset import DatasetVersion
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.evaluations.judge_evaluation import JudgeEvaluation
from dashboard.models.jobs.job import Job
from dashboard.models.operations.data_folder import batches, entries, is_plain_folder, job_number, size
from dashboard.models.operations.storage import StorageUse
from dashboard.models.training.training_run import TrainingRun

Kind = StorageUse.Kind
LARGEST = 5
# Folders whose entries are named after jobs.
JOB_KINDS = (Kind.CHECKPOINTS, Kind.WORK, Kind.LOGS)
# Measured separately; everything else in the data folder counts as other files.
KNOWN = {Kind.UPLOADS, Kind.DATASETS, Kind.ADAPTERS, Kind.ARCHIVES, *JOB_KINDS, "models", "hub"}


class Tally:
    """Sums by kind and project; project 0 is the whole installation."""

    def __init__(self) -> None:
        self.uses = {(kind, 0): StorageUse(kind=kind) for kind in Kind}

    def add(
        self, kind: Kind, size: int, owners: Iterable[tuple[int | None, str, str]], *, removable: bool = False
    ) -> None:
        """Count an entry for the installation and for each owner: (project, title, address)."""
        by_project = {project: (title, address) for project, title, address in owners}
        for project in {None, *by_project}:
            use = self.uses.setdefault((kind, project or 0), StorageUse(kind=kind, project_id=project))
            use.bytes += size
            use.count += 1
            use.removable_bytes += size if removable else 0
            use.removable_count += 1 if removable else 0
            # Only projects list their largest entries: administrators need not see what a project works on.
            if project is not None:
                use.biggest.append([*by_project[project], size])
                use.biggest = sorted(use.biggest, key=lambda entry: -entry[2])[:LARGEST]

    def add_unknown(self, kind: Kind, path: Path, size: int) -> None:
        """Count a folder without a row. Its name is a hash and reveals nothing."""
        use = self.uses[kind, 0]
        use.unknown_count += 1
        use.biggest = sorted([*use.biggest, [path.name, "", size]], key=lambda entry: -entry[2])[:LARGEST]

    def store(self) -> None:
        """Replace the last measurement."""
        with transaction.atomic():
            StorageUse.objects.all().delete()
            StorageUse.objects.bulk_create(self.uses.values())


def measure() -> Iterator[None]:
    """Measure the data folder once."""
    tally = Tally()
    for kind in JOB_KINDS:
        yield from job_entries(tally, kind)
    for part in (adapters, datasets, uploads, archives, installation):
        yield from part(tally)
    tally.store()


def job_entries(tally: Tally, kind: Kind) -> Iterator[None]:
    """Measure checkpoints, work folders and logs by the job in their name."""
    for batch in batches(entries(kind, "job-")):
        jobs = Job.objects.in_bulk([job_number(path) for path in batch])
        titles = subjects_of(jobs)
        for path in batch:
            job = jobs.get(job_number(path))
            owners = [(job.project_id, *titles.get(job.pk, (str(job), "")))] if job else []
            kept = kind == Kind.CHECKPOINTS and job is not None and job.is_over
            tally.add(kind, size(path), owners, removable=kept)
            yield


def subjects_of(jobs: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Return job -> (name, address) of its run, dataset version or evaluation."""
    numbers = list(jobs)
    found: dict[int, tuple[str, str]] = {}
    for run in TrainingRun.objects.filter(job__in=numbers).order_by("-pk"):
        found[run.job_id or 0] = (run.name, run.get_absolute_url())
    for version in DatasetVersion.objects.filter(job__in=numbers).select_related("dataset").defer("report"):
        found[version.job_id or 0] = (str(version), version.get_absolute_url())
    for judge_evaluation in JudgeEvaluation.objects.filter(job__in=numbers).select_related("study", "run"):
        found[judge_evaluation.job_id or 0] = (
            str(judge_evaluation.subject),
            judge_evaluation.subject.get_absolute_url(),
        )
    for evaluation in Evaluation.objects.filter(job__in=numbers).select_related("run"):
        found[evaluation.job_id or 0] = (evaluation.run.name, evaluation.run.get_absolute_url())
    return found


def adapters(tally: Tally) -> Iterator[None]:
    """Measure published adapters by the rows that refer to their folder."""
    for batch in batches(entries(Kind.ADAPTERS)):
        rows = Adapter.objects.filter(folder__in=[path.name for path in batch])
        begun = published(Publication.Kind.ADAPTER, batch)
        for path in batch:
            owners = [
                (row.project_id, str(row), row.get_absolute_url()) for row in rows if row.folder == path.name
            ]
            taken = size(path)
            tally.add(Kind.ADAPTERS, taken, owners)
            if not owners and path.name not in begun:
                tally.add_unknown(Kind.ADAPTERS, path, taken)
            yield


def datasets(tally: Tally) -> Iterator[None]:
    """Measure imported datasets by the versions that refer to their folder."""
    for batch in batches(entries(Kind.DATASETS)):
        names = [path.name for path in batch]
        rows = DatasetVersion.objects.filter(sha256__in=names).select_related("dataset").defer("report")
        begun = published(Publication.Kind.DATASET, batch)
        for path in batch:
            owners = [
                (row.project_id, str(row), row.get_absolute_url()) for row in rows if row.sha256 == path.name
            ]
            taken = size(path)
            tally.add(Kind.DATASETS, taken, owners)
            if not owners and path.name not in begun:
                tally.add_unknown(Kind.DATASETS, path, taken)
            yield


def published(kind: Publication.Kind, batch: list[Path]) -> set[str]:
    """Return the folders that this database has published or started to publish."""
    begun = Publication.objects.filter(kind=kind, folder__in=[path.name for path in batch])
    return set(begun.values_list("folder", flat=True))


def uploads(tally: Tally) -> Iterator[None]:
    """Measure uploaded files that wait for their import."""
    for batch in batches(entries(Kind.UPLOADS)):
        names = [path.name for path in batch]
        rows = DatasetVersion.objects.filter(upload__in=names).select_related("dataset").defer("report")
        for path in batch:
            owners = [
                (row.project_id, row.filename, row.get_absolute_url())
                for row in rows
                if row.upload == path.name
            ]
            tally.add(Kind.UPLOADS, size(path), owners)
            yield


def archives(tally: Tally) -> Iterator[None]:
    """Measure prepared downloads."""
    for batch in batches(entries(Kind.ARCHIVES)):
        numbers = {path: path.name.partition("-")[0] for path in batch}
        rows = Adapter.objects.in_bulk([int(number) for number in numbers.values() if number.isdecimal()])
        for path in batch:
            row = rows.get(int(numbers[path])) if numbers[path].isdecimal() else None
            owners = [(row.project_id, row.archive_name(), row.get_absolute_url())] if row else []
            tally.add(Kind.ARCHIVES, size(path), owners, removable=bool(owners))
            yield


def installation(tally: Tally) -> Iterator[None]:
    """Measure what belongs to no project: base models, the database and other files."""
    for path in [*entries("models"), *entries("hub"), Path(settings.BUNDLED_MODEL_DIR)]:
        if path.exists():
            tally.add(Kind.MODELS, size(path), [])
        yield
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_database_size(current_database())")
            tally.add(Kind.DATABASE, cursor.fetchone()[0], [])
    database = Path(settings.DATABASES["default"]["NAME"]).name
    for path in entries("."):
        is_file = not is_plain_folder(path)
        if path.name.startswith(database) and is_file and connection.vendor == "sqlite":
            tally.add(Kind.DATABASE, size(path), [])
        elif path.name not in KNOWN:
            tally.add(Kind.OTHER, size(path), [])
        yield
