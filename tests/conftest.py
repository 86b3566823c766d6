"""The same few people and things in every test: Mara manages, Ed edits, Vera views, Otto is elsewhere."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import django
import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.core.management.commands import flush
from django.db import connection, models
from django.db.models.functions import Now
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

import tests.plugins.environment  # noqa: F401 - before Django reads its settings
from dashboard.apps import ensure_builtin_rows

django.setup()
# WhiteNoise would list all static files anew for each of thousands of test clients.
settings.WHITENOISE_AUTOREFRESH = True
# After a test with transactions, restore no permissions: no test reads them, and they take 50 ms each time.
flush.emit_post_migrate_signal = lambda *_arguments: restore_builtin_rows()
# Hashing is slow on purpose.
settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher", *settings.PASSWORD_HASHERS]
# A busy machine takes longer than hypothesis allows an example: that is no finding.
hypothesis_settings.register_profile(
    "graftworks", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("graftworks")

from django.contrib.contenttypes.management import create_contenttypes  # noqa: E402

from dashboard.models import (  # noqa: E402
    Adapter,
    ApiToken,
    BaseModel,
    Dataset,
    DatasetVersion,
    DeviceDay,
    Export,
    Job,
    JobEvent,
    Membership,
    Project,
    Role,
    State,
    TargetModuleConfig,
    TrainingRun,
    User,
)
from dashboard.models.jobs.compute_use import ended_usage  # noqa: E402
from dashboard.models.jobs.job_state import MOVES  # noqa: E402
from workers.contract.hyperparameters import Hyperparameters  # noqa: E402

PASSWORD = "correct-horse-battery"
# Folders whose tests run on SQLite and again on PostgreSQL: `pytest -m jobs`.
JOB_FOLDERS = {"jobs", "queue", "budget", "operations", "supervision", "processes", "recovery"}
# Files there about what the engine makes: of the database they ask what the others ask.
ONE_DATABASE = {"test_download.py", "test_dedicated_base.py"}


def restore_builtin_rows() -> None:
    """Create the rows of a new installation without Django's permissions."""
    for app in apps.get_app_configs():
        create_contenttypes(app, verbosity=0)
    ensure_builtin_rows()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that must hold on PostgreSQL as well: those that use the database and concern jobs."""
    for item in items:
        if item.path.parent.name not in JOB_FOLDERS or item.path.name in ONE_DATABASE:
            continue
        if uses_database(item):
            item.add_marker("jobs")


# A pool would outlive a test that breaks its connection.
if connection.vendor == "postgresql":
    connection.settings_dict["OPTIONS"]["pool"] = False


def uses_database(item: pytest.Item) -> bool:
    """Return whether a test queries the database."""
    fixtures = getattr(item, "fixturenames", ())
    return (
        "db" in fixtures or "transactional_db" in fixtures or item.get_closest_marker("django_db") is not None
    )


def shared_environment() -> dict[str, str]:
    """The environment for a process that works on the database and the broker of the present test."""
    database = connection.settings_dict
    if connection.vendor == "sqlite":
        url = f"sqlite:///{database['NAME']}"
    else:
        url = os.environ["TEST_DATABASE_URL"].rsplit("/", 1)[0] + f"/{database['NAME']}"
    return {**os.environ, "DATABASE_URL": url}


def make_user(email: str, project: Project | None = None, role: Role | None = None) -> User:
    """A person with the tests' password, and perhaps a membership."""
    user = User.objects.create(email=email, password=make_password(PASSWORD))
    if project and role:
        Membership.objects.create(project=project, user=user, role=role)
    return user


@pytest.fixture
def project(db: None) -> Project:
    """The project that most tests happen in."""
    return Project.objects.create(name="Support", slug="support")


@pytest.fixture
def other_project(db: None) -> Project:
    """Somebody else's project."""
    return Project.objects.create(name="Elsewhere", slug="elsewhere")


@pytest.fixture
def mara(project: Project) -> User:
    """Manages the project."""
    return make_user("mara@example.org", project, Role.MANAGER)


@pytest.fixture
def ed(project: Project) -> User:
    """Edits in the project."""
    return make_user("ed@example.org", project, Role.EDITOR)


@pytest.fixture
def vera(project: Project) -> User:
    """Views the project."""
    return make_user("vera@example.org", project, Role.VIEWER)


@pytest.fixture
def otto(other_project: Project) -> User:
    """Manages another project and belongs to no other."""
    return make_user("otto@example.org", other_project, Role.MANAGER)


@pytest.fixture
def token(project: Project, ed: User) -> str:
    """The secret of a read-and-write token of the project, owned by Ed."""
    return ApiToken.issue(project, ed, "tests")[1]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's files, built once for all processes, in one of its own: tests stay free of torch."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "models" / "tiny"
    with (shared / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            code = f"import pathlib, tests.tiny_model as t; t.build_tiny_model(pathlib.Path({str(folder)!r}))"
            subprocess.run([sys.executable, "-c", code], check=True, cwd=settings.BASE_DIR, timeout=120)
    return folder


def tiny_census() -> dict[str, object]:
    """A census as the inspect job writes it: two layers, 32 wide, Llama's names."""
    from workers.target_modules.census import Census, Group

    shapes = {
        "self_attn.q_proj": ("attn_q", 32, 32),
        "self_attn.k_proj": ("attn_k", 32, 16),
        "self_attn.v_proj": ("attn_v", 32, 16),
        "self_attn.o_proj": ("attn_out", 32, 32),
        "mlp.gate_proj": ("mlp_gate", 32, 64),
        "mlp.up_proj": ("mlp_up", 32, 64),
        "mlp.down_proj": ("mlp_down", 64, 32),
    }
    groups = [
        Group(f"model.layers.*.{name}", role, "decoder", "linear", (0, 1), d_in, d_out)
        for name, (role, d_in, d_out) in shapes.items()
    ]
    head = Group("lm_head", "head", "decoder", "linear", (), 32, 512)
    census = Census(
        model_type="llama",
        parameters=40_000,
        hidden_size=32,
        num_layers=2,
        max_positions=512,
        vocab_size=512,
        groups=(*groups, head),
        tied_embeddings=True,
        has_chat_template=True,
    )
    return census.to_dict()


def finish(job: Job, state: State = State.SUCCEEDED, **fields: object) -> Job:
    """Lead a job to its end the way a worker would, without the work."""
    if state == State.SUCCEEDED:
        return succeed(job)
    job.move("claim", attempt=job.attempt + 1, worker="test@host")
    job.move("progress")
    job.move("fail", **(fields or {"error_code": "bad_data", "error_message": "Row 1 has no answer."}))
    return job


def succeed(job: Job) -> Job:
    """Store the end and the history of a job that succeeds at its next attempt, in two statements."""
    attempt = job.attempt + 1
    moves = {event: MOVES[event] for event in ("claim", "progress", "work_done", "succeed")}
    JobEvent.objects.bulk_create(
        JobEvent(job=job, attempt=attempt, seq=seq, event=event, from_state=sources[0], to_state=target)
        for seq, (event, (sources, target)) in enumerate(moves.items(), start=job.events.count() + 1)
    )
    ended = {"state": State.SUCCEEDED, "attempt": attempt, "worker": "test@host", "finished_at": Now()}
    assert Job.objects.filter(pk=job.pk, state=State.QUEUED).update(**ended) == 1
    job.refresh_from_db(fields=["state", "attempt", "worker", "finished_at"])
    return job


def ended_job(kind: Job.Kind, project: Project | None, by: User | None = None) -> Job:
    """Create a job that succeeded, without history, for rows that nearly every test needs."""
    ended = {"state": State.SUCCEEDED, "attempt": 1, "worker": "test@host", "finished_at": Now()}
    return Job.objects.create(
        kind=kind, queue=Job.Queue.CPU, spec={}, project=project, created_by=by, **ended
    )


def rewrite(events: models.QuerySet[JobEvent], **facts: object) -> None:
    """Let it have happened otherwise. Histories refuse that, so only tests do it, and only here."""
    models.QuerySet.update(events, **facts)
    DeviceDay.objects.all().delete()
    ended_usage.cache_clear()


def make_base_model(
    project: Project | None = None, name: str = "Tiny", hub_id: str = "example/tiny"
) -> BaseModel:
    """An inspected base model of two tiny layers."""
    base = BaseModel(project=project, source=BaseModel.Source.FOLDER, folder="tiny", name=name, hub_id=hub_id)
    base.job = ended_job(Job.Kind.INSPECT, project)
    base.census, base.path = tiny_census(), str(base.local_folder())
    base.sha256, base.parameters = "ab" * 32, 40_000
    base.save()
    return BaseModel.objects.get(pk=base.pk)


def make_dataset(
    project: Project, name: str = "Tickets", *, by: User | None = None, ready: bool = True
) -> Dataset:
    """A dataset whose first version is imported (or still waiting)."""
    upload = Path(settings.UPLOAD_DIR) / f"{name}.jsonl".replace(" ", "-")
    upload.write_text('{"prompt": "hello", "completion": "hi"}\n' * 20)
    dataset = Dataset.objects.filter(project=project, name=name).first()
    dataset = dataset or Dataset.objects.create(project=project, name=name, created_by=by)
    if not ready:
        dataset.add_version(upload, upload.name, by=by)
        return Dataset.objects.get(pk=dataset.pk)
    report = {
        "sha256": "cd" * 32,
        "test_sha256": "ef" * 32,
        "rows": 20,
        "splits": {"train": 16, "validation": 2, "test": 2},
    }
    DatasetVersion.objects.create(
        project=project,
        dataset=dataset,
        version=dataset.versions.count() + 1,
        upload=upload.name,
        filename=upload.name,
        size_bytes=upload.stat().st_size,
        created_by=by,
        job=ended_job(Job.Kind.IMPORT, project, by),
        report={**report, "problems": [], "shape": "prompt_completion"},
        **report,
    )
    return Dataset.objects.get(pk=dataset.pk)


@pytest.fixture
def base_model(project: Project) -> BaseModel:
    """An inspected base model of the project."""
    return make_base_model(project)


@pytest.fixture
def dataset(project: Project, ed: User) -> Dataset:
    """An imported dataset of the project."""
    return make_dataset(project, by=ed)


def make_run(
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    *,
    by: User | None = None,
    name: str = "Triage",
    **hyper: object,
) -> TrainingRun:
    """A queued run with the recommended preset."""
    version = dataset.newest_ready()
    assert isinstance(version, DatasetVersion)
    run = TrainingRun(
        project=project,
        created_by=by,
        name=name,
        dataset_version=version,
        base_model=base_model,
        target_module_config=TargetModuleConfig.objects.get(slug="efficient"),
    )
    values: dict[str, Any] = {"r": 4, "max_steps": 10, "max_length": 64, **hyper}
    run.freeze(Hyperparameters(**values))
    run.launch()
    return run


def make_export(adapter: Adapter, by: User, content: bytes = b"GGUF") -> Export:
    """A finished export with a file, which no engine wrote."""
    export = Export.objects.start(adapter, Export.Format.GGUF_F16, by)
    finish(export.job)
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    export.record({"Triage-v1-f16.gguf": facts})
    export.path().parent.mkdir(parents=True, exist_ok=True)
    export.path().write_bytes(content)
    return export


@pytest.fixture
def run(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> TrainingRun:
    """A queued run of the project, launched by Ed."""
    return make_run(project, dataset, base_model, by=ed)
