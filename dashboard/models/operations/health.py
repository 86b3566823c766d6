"""Health checks of this installation: workers, dispatcher, broker, database, disk and data folder.

Reads rows, the disk and the migrations. Does not contact the broker, so that a page can run it; `manage.py
doctor` contacts the broker as well.
"""

from __future__ import annotations

import shutil
from datetime import timedelta

from django.conf import settings
from django.db import DatabaseError, OperationalError, connection
from django.db.migrations.executor import MigrationExecutor
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import State, db_now
from dashboard.models.jobs.outbox import Outbox
from dashboard.models.jobs.worker_node import WorkerNode
from dashboard.models.operations.alert import LOW_BYTES, SKEW_SECONDS
from dashboard.models.operations.health_check import (
    HealthCheck,
    Level,
    join_names,
    manage_command,
    start_command,
    worst_first,
)
from dashboard.models.operations.installation import Installation
from dashboard.models.operations.outdated_tables import is_due_to_old_tables

FULL_BYTES = 1024**3
STUCK_AFTER = timedelta(seconds=120)
# The name of each queue's worker, and Celery's options for it.
WORKERS = {
    Job.Queue.GPU: (gettext_lazy("Worker for training and evaluation"), "-c 1 -Q gpu -n gpu0@%h"),
    Job.Queue.CPU: (gettext_lazy("Worker for imports, inspections and exports"), "-c 2 -Q cpu -n cpu@%h"),
    Job.Queue.SERVE: (gettext_lazy("Worker for playground and chat API"), "-c 1 -Q serve -n serve@%h"),
}


def run_health_checks() -> list[HealthCheck]:
    """Return the result of every check, the worst first."""
    tables = check_tables()
    checks = [check_disk()]
    if tables.level == Level.OK:
        try:
            checks += check_rows()
        except DatabaseError as error:
            if not is_due_to_old_tables(error):
                raise
            tables = altered_tables(error)
    return worst_first([tables, *checks])


def check_rows() -> list[HealthCheck]:
    """Return the checks that read tables."""
    return [
        *(check_workers(queue) for queue in Job.Queue),
        check_dispatcher(),
        check_wake_ups(),
        check_stuck_jobs(),
        check_clocks(),
        check_bundled_model(),
        check_database(),
        check_paused_workers(),
        check_data_folder(),
    ]


def check_tables() -> HealthCheck:
    """Check that the database answers and that every migration is applied."""
    code, title = "tables", _("Database tables")
    try:
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except OperationalError:
        text = _("The database does not answer, so the other checks could not run.")
        remedy = _("Start the database or correct DATABASE_URL. This command shows the error:")
        command = manage_command("check --database default")
        return HealthCheck(code, title, Level.PROBLEM, text, remedy, command)
    if not missing:
        return HealthCheck(code, title, Level.OK, _("All migrations are applied."))
    text = ngettext(
        "%(count)d migration is not applied: the tables are older than the program.",
        "%(count)d migrations are not applied: the tables are older than the program.",
        len(missing),
    ) % {"count": len(missing)}
    remedy = _("Back up the database, run the migrations and restart Graftworks.")
    return HealthCheck(code, title, Level.PROBLEM, text, remedy, manage_command("migrate"))


def altered_tables(error: DatabaseError) -> HealthCheck:
    """Return the result for a missing table or column although every migration is applied."""
    text = _("All migrations are applied, but a table or column is missing: %(error)s")
    return HealthCheck(
        "tables",
        _("Database tables"),
        Level.PROBLEM,
        text % {"error": f"{error}".strip().splitlines()[0].rstrip(".") + "."},
        _("The tables were changed by hand. Restore the last backup. This command lists the migrations:"),
        manage_command("showmigrations dashboard"),
    )


def check_disk() -> HealthCheck:
    """Check the free space for datasets, checkpoints and adapters."""
    free = shutil.disk_usage(settings.DATA_DIR).free
    text = _("The disk of the data folder has %(free).1f GB free.") % {"free": free / 1024**3}
    if free >= LOW_BYTES:
        return HealthCheck("disk", _("Disk"), Level.OK, text)
    return HealthCheck(
        "disk",
        _("Disk"),
        Level.WARNING if free >= FULL_BYTES else Level.PROBLEM,
        text,
        _(
            "Runs fail when no space is left, and Graftworks does not start with less than 1 GB. Free some "
            "space, or move the data folder to a larger disk and set DATA_DIR. This command lists the sizes:"
        ),
        'du -h --max-depth=1 "${DATA_DIR:-.graftworks}" | sort -h',
    )


def check_workers(queue: Job.Queue) -> HealthCheck:
    """Check that a worker takes the jobs of `queue` and that none has fallen silent."""
    code = f"worker-{queue}"
    title, options = str(WORKERS[queue][0]), WORKERS[queue][1]
    nodes = WorkerNode.objects.filter(kind=WorkerNode.Kind.WORKER, queue=queue)
    taking = nodes.alive().filter(draining=False).count()
    silent = list(nodes.silent().values_list("name", flat=True))
    if taking:
        text = ngettext("%(count)d worker is online.", "%(count)d workers are online.", taking)
        text %= {"count": taking}
        if not silent:
            return HealthCheck(code, title, Level.OK, text)
        level = Level.WARNING
        remedy = _(
            "Start it again. A worker that you removed for good disappears from this check after a day."
        )
    elif nodes.alive().filter(draining=True).exists():
        level, text = Level.WARNING, _("The worker is shutting down: it saves its work and takes no new job.")
        remedy = _("Start it again when it has stopped.")
    else:
        level, text = Level.PROBLEM, _("No worker takes these jobs, so they wait.")
        remedy = _("Start Graftworks or this worker. If it is running, its log shows why it cannot work.")
    if silent:
        text = f"{text} {_('Stopped responding: %(names)s.') % {'names': join_names(silent)}}"
    command = start_command(f"celery -A workers.celery worker -P prefork {options}")
    return HealthCheck(code, title, level, text, remedy, command)


def check_paused_workers() -> HealthCheck:
    """Check for paused workers, because a pause is easily forgotten."""
    code, title = "paused", _("Paused workers")
    paused = list(WorkerNode.objects.alive().exclude(paused_at=None).values_list("name", flat=True))
    if not paused:
        return HealthCheck(code, title, Level.OK, _("No worker is paused."))
    text = _("These workers take no new job: %(names)s.") % {"names": join_names(paused)}
    remedy = _("Open Workers and queue and choose Resume to let them work again.")
    return HealthCheck(code, title, Level.WARNING, text, remedy)


def check_dispatcher() -> HealthCheck:
    """Check that one dispatcher leads."""
    code, title = "dispatcher", _("Dispatcher")
    if WorkerNode.objects.leading().exists():
        return HealthCheck(code, title, Level.OK, _("A dispatcher assigns the jobs."))
    if WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.DISPATCHER).exists():
        text = _("A dispatcher is running but does not assign jobs yet, so no job starts.")
        remedy = _("After a crash this takes up to 30 s. If it lasts longer, check its log and restart it.")
    else:
        text = _("No dispatcher is running, so no job starts and none is recovered.")
        remedy = _("Start Graftworks or its dispatcher. If it is running, check its log.")
    command = start_command(manage_command("dispatch"))
    return HealthCheck(code, title, Level.PROBLEM, text, remedy, command)


def check_wake_ups() -> HealthCheck:
    """Check that the outbox is emptied. If it is not, the dispatcher cannot reach the broker."""
    code, title = "wake-ups", _("Messages to workers")
    late = Outbox.objects.overdue().count()
    leader = WorkerNode.objects.leading().first()
    is_silent = leader is not None and leader.broker_silent_since is not None
    if not late and not is_silent:
        return HealthCheck(code, title, Level.OK, _("No message is waiting to be sent."))
    if leader:
        text = _("The dispatcher cannot reach the broker (Valkey or Redis). Jobs wait, and none is lost.")
        remedy = _("Start the broker or correct REDIS_URL. This command contacts the broker:")
    else:
        text = _("Messages are waiting for a dispatcher. Jobs wait, and none is lost.")
        remedy = _("Fix the dispatcher first. This command then contacts the broker:")
    return HealthCheck(code, title, Level.PROBLEM, text, remedy, manage_command("doctor"))


def check_stuck_jobs() -> HealthCheck:
    """Check for jobs whose worker is gone and that no dispatcher has recovered."""
    code, title = "jobs", _("Jobs")
    stuck = [str(job) for job in Job.objects.live().filter(lease_until__lt=db_now(-STUCK_AFTER))]
    if not stuck:
        return HealthCheck(code, title, Level.OK, _("Every running job has a worker that reports."))
    text = _("The workers of these jobs stopped reporting more than 120 s ago: %(jobs)s.")
    remedy = _("The dispatcher queues such jobs again. Start it. If it is running, check its log.")
    command = start_command(manage_command("dispatch"))
    return HealthCheck(code, title, Level.PROBLEM, text % {"jobs": join_names(stuck)}, remedy, command)


def check_clocks() -> HealthCheck:
    """Check that the workers' clocks agree with the database's."""
    code, title = "clocks", _("Clocks")
    wrong = [
        clock_difference(node.name, node.clock_ahead or 0.0)
        for node in WorkerNode.objects.alive().with_wrong_clock(SKEW_SECONDS)
    ]
    if not wrong:
        text = _("No worker's clock differs from the database's.")
        return HealthCheck(code, title, Level.OK, text)
    remedy = _(
        "Jobs are safe because leases use the database's clock, but times in logs and of files are wrong. "
        "Turn on time synchronization on that machine:"
    )
    command = "sudo timedatectl set-ntp true"
    return HealthCheck(code, title, Level.WARNING, " ".join(wrong), remedy, command)


def clock_difference(name: str, seconds: float) -> str:
    values = {"name": name, "seconds": round(abs(seconds))}
    if seconds > 0:
        return _("The clock of %(name)s is %(seconds)d s ahead of the database's.") % values
    return _("The clock of %(name)s is %(seconds)d s behind the database's.") % values


def check_bundled_model() -> HealthCheck:
    """Check that the model that needs no hub is present and inspected."""
    code, title = "bundled-model", _("Bundled base model")
    row = BaseModel.objects.filter(source=BaseModel.Source.BUNDLED).first()
    if row is None or not (row.local_folder() / "config.json").is_file():
        others = BaseModel.objects.ready().exclude(source=BaseModel.Source.BUNDLED)
        return HealthCheck(
            code,
            title,
            Level.WARNING if others.exists() else Level.PROBLEM,
            _("The files of the bundled base model are missing."),
            _("Download them, or set BUNDLED_MODEL_DIR to their folder and restart Graftworks."),
            "python3 dashboard/launcher/machine.py start",
        )
    if row.is_ready:
        return HealthCheck(code, title, Level.OK, _("The model is inspected, and runs can use it."))
    if row.state in (State.FAILED, State.CANCELLED):
        text = _("The inspection of the model failed, so no run can use it.")
        remedy = _("Open Settings, Base models, %(name)s to see the reason and to inspect it again.")
        return HealthCheck(code, title, Level.PROBLEM, text, remedy % {"name": row})
    text = _("The model is not inspected yet, so no run can use it.")
    remedy = _(
        "This takes about a minute while the dispatcher and a worker for imports and inspections are running."
    )
    return HealthCheck(code, title, Level.WARNING, text, remedy)


def check_data_folder() -> HealthCheck:
    """Check that data folder and database belong together, because one without the other loses files."""
    code, title = "data-folder", _("Data folder")
    if Installation.objects.is_at_home():
        return HealthCheck(code, title, Level.OK, _("The data folder belongs to this database."))
    text = _("The data folder belongs to another database, so Graftworks deletes no old files from it.")
    remedy = _(
        "Set DATABASE_URL and DATA_DIR to a database and a folder that belong together. If the old "
        "files are not needed, delete the file installation-id in the data folder to have them cleaned up."
    )
    return HealthCheck(code, title, Level.PROBLEM, text, remedy)


def check_database() -> HealthCheck:
    """Check that SQLite, a file of one machine, is not used from several."""
    code, title = "database", _("Database")
    if connection.vendor != "sqlite":
        return HealthCheck(code, title, Level.OK, _("A database server that several machines can use."))
    hosts = sorted(set(WorkerNode.objects.alive().values_list("host", flat=True)))
    if len(hosts) < 2:
        return HealthCheck(code, title, Level.OK, _("SQLite, used from one machine."))
    text = _("SQLite is used from several machines, which can corrupt it: %(hosts)s.")
    remedy = _("Stop Graftworks on all machines but one, or set up PostgreSQL and set it on each of them:")
    command = "export DATABASE_URL=postgres://user:password@host/graftworks"
    return HealthCheck(code, title, Level.PROBLEM, text % {"hosts": join_names(hosts)}, remedy, command)
