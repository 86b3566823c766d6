"""Whether this installation is in order: findings in words, each with the way to mend it.

Looks at rows, the disk and the migrations. Asks no broker, so that a page may show it; `manage.py doctor`
asks the broker as well.
"""

from __future__ import annotations

import shutil
from datetime import timedelta

from django.conf import settings
from django.db import DatabaseError, OperationalError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from dashboard.models.alarm import LOW_BYTES, SKEW_SECONDS
from dashboard.models.base_model import BaseModel
from dashboard.models.finding import Finding, Level, listed, manage, start
from dashboard.models.installation import Installation
from dashboard.models.job import Job
from dashboard.models.job_state import State, db_now
from dashboard.models.old_tables import is_due_to_old_tables
from dashboard.models.outbox import Outbox
from dashboard.models.storage import StorageUse
from dashboard.models.worker_node import WorkerNode

FULL_BYTES = 1024**3
STUCK_AFTER = timedelta(seconds=120)


def findings() -> list[Finding]:
    """Everything that was looked at, the worst first."""
    found = [tables(), disk()]
    # Rows can only be read from tables that are there.
    if found[0].level == Level.OK:
        try:
            found += rows()
        except DatabaseError as error:
            if not is_due_to_old_tables(error):
                raise
            found[0] = altered_tables(error)
    return sorted(found, key=lambda finding: list(Level).index(finding.level))


def rows() -> list[Finding]:
    """What the tables tell."""
    found = [worker(queue) for queue in Job.Queue]
    found += [dispatcher(), wake_ups(), stuck_jobs(), clocks(), bundled_model(), database()]
    return [*found, paused_workers(), data_folder(), unknown_folders()]


def tables() -> Finding:
    """Whether the database answers and has the tables that this version needs."""
    title = _("Database tables")
    try:
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except OperationalError:
        return Finding(
            "tables",
            title,
            Level.PROBLEM,
            _("The database does not answer, so nothing else could be looked at."),
            _("Start the database, or correct DATABASE_URL. This says what is wrong:"),
            manage("check --database default"),
        )
    if not missing:
        return Finding("tables", title, Level.OK, _("The tables are those of this version."))
    text = ngettext(
        "%(count)d migration is missing: the tables are older than the program.",
        "%(count)d migrations are missing: the tables are older than the program.",
        len(missing),
    )
    return Finding(
        "tables",
        title,
        Level.PROBLEM,
        text % {"count": len(missing)},
        _("Make a copy of the database, then bring the tables up to date and start Graftworks again."),
        manage("migrate"),
    )


def altered_tables(error: DatabaseError) -> Finding:
    """Every migration is noted as done, and yet something is not there."""
    return Finding(
        "tables",
        _("Database tables"),
        Level.PROBLEM,
        _("All migrations are noted as done, but a part of the tables is missing: %(error)s")
        % {"error": f"{error}".strip().splitlines()[0].rstrip(".") + "."},
        _("Somebody has altered the tables by hand. Put the last copy back. This lists all:"),
        manage("showmigrations dashboard"),
    )


def disk() -> Finding:
    """Room for datasets, checkpoints and adapters."""
    free = shutil.disk_usage(settings.DATA_DIR).free
    text = _("%(free).1f GB are free on the disk of the data folder.") % {"free": free / 1024**3}
    if free >= LOW_BYTES:
        return Finding("disk", _("Disk"), Level.OK, text)
    return Finding(
        "disk",
        _("Disk"),
        Level.WARNING if free >= FULL_BYTES else Level.PROBLEM,
        text,
        _(
            "Runs fail when it is full, and Graftworks does not start with less than 1 GB. Free some space, "
            "or move the data folder to a larger disk and set DATA_DIR. This shows what takes the space:"
        ),
        'du -h --max-depth=1 "${DATA_DIR:-.graftworks}" | sort -h',
    )


def worker(queue: Job.Queue) -> Finding:
    """Whether somebody takes the jobs of a queue, and everybody who did is still there."""
    check = f"worker-{queue}"
    title = _("Training worker") if queue == Job.Queue.GPU else _("Worker for light jobs")
    nodes = WorkerNode.objects.filter(kind=WorkerNode.Kind.WORKER, queue=queue)
    taking, draining = nodes.alive().filter(draining=False).count(), nodes.alive().filter(draining=True)
    silent = list(nodes.silent().values_list("name", flat=True))
    quiet = _("Silent without a good-bye: %(names)s.") % {"names": listed(silent)} if silent else ""
    if taking:
        text = ngettext("%(count)d worker answers.", "%(count)d workers answer.", taking) % {"count": taking}
        if not silent:
            return Finding(check, title, Level.OK, text)
        level = Level.WARNING
        mend = _("Start it again. One that was removed for good is forgotten a day after its last sign.")
    elif draining.exists():
        level, text = Level.WARNING, _("The worker shuts down: it saves its work and takes no new job.")
        mend = _("Once it has ended, start it again.")
    else:
        level, text = Level.PROBLEM, _("No worker takes jobs of this kind, so they wait.")
        mend = _("Start Graftworks or this worker. If it runs, look at its log: it says why it cannot work.")
    return Finding(check, title, level, f"{text} {quiet}".strip(), mend, start(worker_command(queue)))


def paused_workers() -> Finding:
    """A pause is easily forgotten."""
    paused = list(WorkerNode.objects.alive().exclude(paused_at=None).values_list("name", flat=True))
    if not paused:
        return Finding("paused", _("Paused workers"), Level.OK, _("No worker is paused."))
    return Finding(
        "paused",
        _("Paused workers"),
        Level.WARNING,
        _("They take no new job: %(names)s.") % {"names": listed(paused)},
        _("Open Workers and queue and choose Resume, when they are to work again."),
    )


def worker_command(queue: Job.Queue) -> str:
    """What starts one worker alone."""
    processes = "-c 1 -Q gpu -n gpu0@%h" if queue == Job.Queue.GPU else "-c 2 -Q cpu -n cpu@%h"
    return f"celery -A workers.celery worker -P prefork {processes}"


def dispatcher() -> Finding:
    """Whether one dispatcher is there and leads."""
    title, command = _("Dispatcher"), start(manage("dispatch"))
    if WorkerNode.objects.leading().exists():
        return Finding("dispatcher", title, Level.OK, _("A dispatcher leads."))
    if WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.DISPATCHER).exists():
        text = _("A dispatcher is there but none leads, so no job starts.")
        mend = _("After a crash the lead is free within 30 s. If this stays, look at its log and restart it.")
    else:
        text = _("No dispatcher answers, so no job starts and none is recovered.")
        mend = _("Start Graftworks or its dispatcher. If it runs, look at its log.")
    return Finding("dispatcher", title, Level.PROBLEM, text, mend, command)


def wake_ups() -> Finding:
    """Whether what the outbox holds goes out: if not, the broker cannot be reached."""
    late = Outbox.objects.overdue().count()
    leader = WorkerNode.objects.leading().first()
    if leader and leader.broker_silent_since:
        return Finding(
            "wake-ups",
            _("Wake-ups for workers"),
            Level.PROBLEM,
            _("The broker (Valkey or Redis) does not answer the dispatcher. No job is lost: they wait."),
            _("Start the broker, or correct REDIS_URL. This asks the broker itself:"),
            manage("doctor"),
        )
    if not late:
        return Finding("wake-ups", _("Wake-ups for workers"), Level.OK, _("No wake-up waits to be sent."))
    text = ngettext(
        "%(count)d wake-up has waited for more than 30 s.",
        "%(count)d wake-ups have waited for more than 30 s.",
        late,
    ) % {"count": late}
    if leader:
        cause = _("The dispatcher cannot reach the broker (Valkey or Redis). No job is lost.")
        mend = _("Start the broker, or correct REDIS_URL. This asks the broker itself:")
    else:
        cause = _("They wait for a dispatcher. No job is lost.")
        mend = _("Mend the dispatcher first. Then this asks the broker itself:")
    return Finding(
        "wake-ups", _("Wake-ups for workers"), Level.PROBLEM, f"{text} {cause}", mend, manage("doctor")
    )


def stuck_jobs() -> Finding:
    """Jobs whose worker is long gone, and which nobody has taken away from it."""
    stuck = [str(job) for job in Job.objects.live().filter(lease_until__lt=db_now(-STUCK_AFTER))]
    if not stuck:
        return Finding("jobs", _("Jobs"), Level.OK, _("Each job at work has a worker that reports."))
    return Finding(
        "jobs",
        _("Jobs"),
        Level.PROBLEM,
        _("Held by workers that do not report, for more than 120 s past their time: %(jobs)s.")
        % {"jobs": listed(stuck)},
        _("The dispatcher queues such jobs again. Start it; if it runs, its log says why it cannot."),
        start(manage("dispatch")),
    )


def clocks() -> Finding:
    """Whether the workers' clocks agree with the database's."""
    compared = WorkerNode.objects.alive().exclude(clock_ahead=None)
    wrong = compared.with_wrong_clock(SKEW_SECONDS)
    said = [ahead(node.name, node.clock_ahead or 0.0) for node in wrong]
    if said:
        return Finding(
            "clocks",
            _("Clocks"),
            Level.WARNING,
            " ".join(said),
            _(
                "Jobs are safe, because leases run on the database's clock, but times in logs and of files "
                "are wrong. Switch on time synchronisation on that machine:"
            ),
            "sudo timedatectl set-ntp true",
        )
    text = _("The workers' clocks agree with the database's.") if compared else _("No clock to compare yet.")
    return Finding("clocks", _("Clocks"), Level.OK, text)


def ahead(name: str, seconds: float) -> str:
    """One worker's clock in a sentence."""
    facts = {"name": name, "seconds": round(abs(seconds))}
    if seconds > 0:
        return _("The clock of %(name)s is %(seconds)d s ahead of the database's.") % facts
    return _("The clock of %(name)s is %(seconds)d s behind the database's.") % facts


def bundled_model() -> Finding:
    """Whether the model that needs no hub is there and can be trained on."""
    title, row = _("Bundled base model"), BaseModel.objects.filter(source=BaseModel.Source.BUNDLED).first()
    if row is None or not (row.local_folder() / "config.json").is_file():
        others = BaseModel.objects.ready().exclude(source=BaseModel.Source.BUNDLED)
        return Finding(
            "bundled-model",
            title,
            Level.WARNING if others.exists() else Level.PROBLEM,
            _("The files of the bundled base model are not there."),
            _("Fetch them, or set BUNDLED_MODEL_DIR to their folder and start Graftworks again."),
            "python3 dashboard/machine.py start",
        )
    if row.is_ready:
        return Finding("bundled-model", title, Level.OK, _("It has been inspected: runs can start on it."))
    if row.state in (State.FAILED, State.CANCELLED):
        text = _("Its inspection did not succeed, so no run can start on it.")
        mend = _("Open Settings, Base models, %(name)s. The page says why and can inspect it again.")
        return Finding("bundled-model", title, Level.PROBLEM, text, mend % {"name": row})
    return Finding(
        "bundled-model",
        title,
        Level.WARNING,
        _("It has not been inspected yet, so no run can start on it."),
        _("The dispatcher asks for it and a worker for light jobs does it, within a minute when both run."),
    )


def data_folder() -> Finding:
    """A database that does not belong to its folder knows none of the files there."""
    title = _("Data folder")
    if Installation.objects.is_at_home():
        return Finding("data-folder", title, Level.OK, _("It belongs to this database."))
    return Finding(
        "data-folder",
        title,
        Level.PROBLEM,
        _("It belongs to another database, so old files are not cleared: this database knows none of them."),
        _(
            "Set DATABASE_URL or DATA_DIR to the pair that belongs together. Only if the old files are not "
            "needed any more, delete the file installation-id in the data folder: leftovers are then cleared."
        ),
    )


def unknown_folders() -> Finding:
    """Adapters and datasets on the disk that no row names and that this database did not publish."""
    title = _("Folders without an owner")
    uses = list(StorageUse.objects.filter(project=None, unknown_count__gt=0))
    if not uses:
        return Finding(
            "unknown-folders", title, Level.OK, _("Each adapter and dataset on the disk is known.")
        )
    names = [f"{use.kind}/{name}" for use in uses for name, _address, _bytes in use.biggest]
    count = sum(use.unknown_count for use in uses)
    return Finding(
        "unknown-folders",
        title,
        Level.WARNING,
        ngettext(
            "%(count)d folder is in no row of the database, so it is kept and shown nowhere: %(names)s.",
            "%(count)d folders are in no row of the database, so they are kept and shown nowhere: %(names)s.",
            count,
        )
        % {"count": count, "names": listed(names)},
        _(
            "Such folders come from another database, or from this one before an older copy was put back. "
            "Keep them if you may need them, else delete them in the data folder."
        ),
    )


def database() -> Finding:
    """SQLite is a file of one machine; programs on several would spoil it."""
    hosts = sorted(set(WorkerNode.objects.alive().values_list("host", flat=True)))
    if connection.vendor != "sqlite":
        return Finding("database", _("Database"), Level.OK, _("A database server, fit for several machines."))
    if len(hosts) < 2:
        return Finding("database", _("Database"), Level.OK, _("SQLite, and one machine that uses it."))
    return Finding(
        "database",
        _("Database"),
        Level.PROBLEM,
        _("SQLite is used from several machines, which can spoil it: %(hosts)s.") % {"hosts": listed(hosts)},
        _("Stop the programs of all machines but one, or set up PostgreSQL and name it on each of them:"),
        "export DATABASE_URL=postgres://user:password@host/graftworks",
    )
