"""Settings, Storage: the dispatcher's measurement, and the page that shows it to administrators."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from dashboard.models import Adapter, CleanUp, Project, State, StorageUse, TrainingRun, User
from dashboard.models.operations.storage_measurement import measure
from tests.conftest import finish, make_dataset

KINDS = ("uploads", "datasets", "adapters", "checkpoints", "work", "logs", "archives", "models", "hub")


@pytest.fixture(autouse=True)
def empty_folder(db: None) -> None:
    """Empty the data folder, which all tests share."""
    for kind in KINDS:
        shutil.rmtree(Path(settings.DATA_DIR) / kind, ignore_errors=True)
        (Path(settings.DATA_DIR) / kind).mkdir()


def put(name: str, size: int) -> None:
    """Write a file of that size below the data folder."""
    path = Path(settings.DATA_DIR) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def run_measurement() -> None:
    list(measure())


def size_of(kind: str, project: Project | None) -> tuple[int, int, int]:
    """Return bytes, number of entries and removable bytes."""
    use = StorageUse.objects.get(kind=kind, project=project)
    return use.bytes, use.count, use.removable_bytes


@pytest.fixture
def page(client: Client, mara: User) -> Callable[[], str]:
    """Return a function that gets the page as Mara."""
    client.force_login(mara)
    return lambda: client.get(reverse("storage-index")).content.decode()


@pytest.fixture
def ended(run: TrainingRun) -> TrainingRun:
    """Return a failed run with checkpoints of 5,000 bytes and a log."""
    assert run.job
    finish(run.job, State.FAILED)
    put(f"checkpoints/job-{run.job.pk}/000001/arm.safetensors", 4000)
    put(f"checkpoints/job-{run.job.pk}/000001/manifest.json", 1000)
    put(f"logs/job-{run.job.pk}.log", 300)
    return run


def test_entries_of_jobs_count_for_their_project(ended: TrainingRun, project: Project) -> None:
    put("checkpoints/job-999999/000001/manifest.json", 7)
    run_measurement()
    assert size_of("checkpoints", project) == (5000, 1, 5000)
    assert size_of("checkpoints", None) == (5007, 2, 5000)
    assert size_of("logs", project) == (300, 1, 0)
    use = StorageUse.objects.get(kind="checkpoints", project=project)
    assert use.biggest == [[ended.name, ended.get_absolute_url(), 5000]]


def test_checkpoints_of_waiting_run_are_not_removable(run: TrainingRun, project: Project) -> None:
    put(f"checkpoints/job-{run.job_id}/000001/manifest.json", 10)
    run_measurement()
    assert size_of("checkpoints", project) == (10, 1, 0)


def test_shared_dataset_counts_for_both_projects(
    project: Project, other_project: Project, ed: User, otto: User
) -> None:
    versions = [make_dataset(place, by=by).newest() for place, by in ((project, ed), (other_project, otto))]
    assert versions[0]
    put(f"datasets/{versions[0].sha256}/train.parquet", 100)
    run_measurement()
    assert [size_of("datasets", place)[0] for place in (project, other_project, None)] == [100, 100, 100]


def test_other_kinds_are_measured(project: Project, run: TrainingRun) -> None:
    adapter = Adapter.objects.publish(run, "cc" * 32, {"adapter_model.safetensors": "ef" * 32}, 2)
    put(f"adapters/{'cc' * 32}/adapter_model.safetensors", 64)
    put(f"archives/{adapter.pk}-abc.zip", 70)
    put("models/operators/config.json", 9)
    put("hub/models--x/blob", 11)
    put("uploads/spooled.upload", 12)
    run_measurement()
    assert size_of("adapters", project) == (64, 1, 0)
    assert size_of("archives", project) == (70, 1, 70)
    assert size_of("uploads", None) == (12 + size_of("uploads", project)[0], 2, 0)
    assert size_of("models", None)[0] >= 20
    assert size_of("database", None)[0] > 0


def test_measurement_replaces_the_last_one(ended: TrainingRun, project: Project) -> None:
    run_measurement()
    shutil.rmtree(Path(settings.DATA_DIR) / "checkpoints")
    run_measurement()
    assert not StorageUse.objects.filter(kind="checkpoints", project=project).exists()


def test_page_shows_sizes_and_removable_files(
    ended: TrainingRun, page: Callable[[], str], project: Project, mara: User
) -> None:
    assert "Not measured yet" in page()
    run_measurement()
    text = page()
    for words in (
        "Checkpoints of 1 ended run (5 kB). Without them, the run cannot be resumed.",
        "Clean up 5 kB…",
        "It keeps datasets, adapters, runs",
        f'<a href="{ended.get_absolute_url()}">{ended.name}</a>',
        "14 days after the run ended",
    ):
        assert words in text
    assert "The whole installation" not in text
    CleanUp.objects.request(project, mara)
    text = page()
    assert f"{mara} requested a clean-up" in text
    assert "clean-up-project" not in text


def test_superuser_sees_sizes_but_no_names_of_runs(ended: TrainingRun, client: Client) -> None:
    run_measurement()
    client.force_login(User.objects.create_superuser("root@example.org"))
    text = client.get(reverse("storage-index")).content.decode()
    assert "The whole installation" in text
    assert "Support" in text
    assert ended.name not in text


def test_other_projects_are_hidden(ended: TrainingRun, client: Client, otto: User) -> None:
    run_measurement()
    client.force_login(otto)
    text = client.get(reverse("storage-index")).content.decode()
    assert ended.name not in text
    assert "5 kB" not in text


def test_number_of_queries_is_constant(
    ended: TrainingRun, client: Client, mara: User, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(300):
        put(f"logs/job-{100_000 + number}.log", 1)
    run_measurement()
    client.force_login(mara)
    with django_assert_max_num_queries(14):
        client.get(reverse("storage-index"))


def test_folder_of_another_database_offers_no_clean_up(
    ended: TrainingRun, page: Callable[[], str], request: pytest.FixtureRequest
) -> None:
    mark = Path(settings.DATA_DIR) / "installation-id"
    request.addfinalizer(lambda: mark.unlink(missing_ok=True))
    mark.unlink(missing_ok=True)
    run_measurement()
    assert 'commandfor="clean-up-project"' in page()
    mark.write_text("another database wrote this\n")
    text = page()
    assert "The data folder belongs to another database, so Graftworks deletes none of its files" in text
    assert "clean-up-project" not in text
    assert 'class="num">5 kB</td>' in text, "the size is shown, but not as removable"
    assert text.count(">5 kB<") == 2
