"""Settings, Storage: sizes as the dispatcher measured them, for those who look after them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from dashboard.models import Adapter, CleanUp, Project, Publication, State, StorageUse, TrainingRun, User
from dashboard.models.operations.storage_measurement import measure
from tests.conftest import finish, make_base_model, make_dataset, make_run

KINDS = ("uploads", "datasets", "adapters", "checkpoints", "work", "logs", "archives", "models", "hub")


@pytest.fixture(autouse=True)
def empty_folder(db: None) -> None:
    """All tests share one data folder."""
    for kind in KINDS:
        shutil.rmtree(Path(settings.DATA_DIR) / kind, ignore_errors=True)
        (Path(settings.DATA_DIR) / kind).mkdir()


def put(name: str, size: int) -> Path:
    """A file of that size below the data folder."""
    path = Path(settings.DATA_DIR) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def take_sizes() -> None:
    """What the dispatcher does every five minutes."""
    for _step in measure():
        pass


def size_of(kind: str, project: Project | None) -> tuple[int, int, int]:
    """Bytes, things and what could go."""
    use = StorageUse.objects.get(kind=kind, project=project)
    return use.bytes, use.count, use.removable_bytes


@pytest.fixture
def page(client: Client, mara: User) -> Callable[[], str]:
    """The page as Mara sees it."""
    client.force_login(mara)
    return lambda: client.get(reverse("storage-index")).content.decode()


@pytest.fixture
def ended(run: TrainingRun) -> TrainingRun:
    """A run that has failed and left checkpoints of 5,000 bytes and a log."""
    assert run.job
    finish(run.job, State.FAILED)
    put(f"checkpoints/job-{run.job.pk}/000001/arm.safetensors", 4000)
    put(f"checkpoints/job-{run.job.pk}/000001/manifest.json", 1000)
    put(f"logs/job-{run.job.pk}.log", 300)
    return run


def test_it_counts_what_a_project_has(ended: TrainingRun, project: Project) -> None:
    put("checkpoints/job-999999/000001/manifest.json", 7)
    take_sizes()
    assert size_of("checkpoints", project) == (5000, 1, 5000)
    assert size_of("checkpoints", None) == (5007, 2, 5000)
    assert size_of("logs", project) == (300, 1, 0)
    use = StorageUse.objects.get(kind="checkpoints", project=project)
    assert use.biggest == [[ended.name, ended.get_absolute_url(), 5000]]


def test_checkpoints_of_a_run_that_goes_on_are_not_safe_to_remove(run: TrainingRun, project: Project) -> None:
    put(f"checkpoints/job-{run.job_id}/000001/manifest.json", 10)
    take_sizes()
    assert size_of("checkpoints", project) == (10, 1, 0)


def test_what_two_projects_share_counts_for_both(
    project: Project, other_project: Project, ed: User, otto: User
) -> None:
    versions = [make_dataset(one, by=by).newest() for one, by in ((project, ed), (other_project, otto))]
    assert versions[0]
    put(f"datasets/{versions[0].sha256}/train.parquet", 100)
    take_sizes()
    assert [size_of("datasets", one)[0] for one in (project, other_project, None)] == [100, 100, 100]


def test_it_finds_folders_that_no_row_names(db: None) -> None:
    put(f"adapters/{'aa' * 32}/run.json", 5)
    put(f"datasets/{'bb' * 32}/train.parquet", 5)
    Publication.objects.begin(Publication.Kind.DATASET, "bb" * 32)
    take_sizes()
    unknown = {use.kind: use.unknown_count for use in StorageUse.objects.filter(project=None)}
    assert (unknown["adapters"], unknown["datasets"]) == (1, 0), "one was about to be published"


def test_it_counts_what_belongs_to_all(project: Project, run: TrainingRun) -> None:
    adapter = Adapter.objects.publish(run, "cc" * 32, {"adapter_model.safetensors": "ef" * 32}, 2)
    put(f"adapters/{'cc' * 32}/adapter_model.safetensors", 64)
    put(f"archives/{adapter.pk}-abc.zip", 70)
    put("models/operators/config.json", 9)
    put("hub/models--x/blob", 11)
    put("uploads/spooled.upload", 12)
    take_sizes()
    assert size_of("adapters", project) == (64, 1, 0)
    assert size_of("archives", project) == (70, 1, 70)
    assert size_of("uploads", None) == (12 + size_of("uploads", project)[0], 2, 0)
    assert size_of("models", None)[0] >= 20
    assert size_of("database", None)[0] > 0


def test_a_second_round_takes_the_place_of_the_first(ended: TrainingRun, project: Project) -> None:
    take_sizes()
    shutil.rmtree(Path(settings.DATA_DIR) / "checkpoints")
    take_sizes()
    assert not StorageUse.objects.filter(kind="checkpoints", project=project).exists()


def test_the_page_names_sizes_and_what_is_safe_to_remove(ended: TrainingRun, page: Callable[[], str]) -> None:
    take_sizes()
    text = page()
    for words in (
        "5 kB",
        "Checkpoints of 1 ended run (5 kB). You can no longer resume it.",
        "Clean up 5 kB…",
        "It keeps datasets, adapters, runs",
        f'<a href="{ended.get_absolute_url()}">{ended.name}</a>',
        "14 days after the run ended",
    ):
        assert words in text
    assert "The whole installation" not in text


def test_before_the_first_round_it_says_so(page: Callable[[], str]) -> None:
    assert "Not measured yet" in page()


def test_a_clean_up_that_was_asked_for_is_not_offered_again(
    ended: TrainingRun, page: Callable[[], str], project: Project, mara: User
) -> None:
    take_sizes()
    CleanUp.objects.request(project, mara)
    text = page()
    assert f"{mara} requested a clean-up" in text
    assert "Clean up 5 kB…" not in text


def test_a_superuser_sees_the_whole_without_the_names_of_runs(
    ended: TrainingRun, client: Client, other_project: Project, otto: User
) -> None:
    take_sizes()
    client.force_login(User.objects.create_superuser("root@example.org"))
    text = client.get(reverse("storage-index")).content.decode()
    assert "The whole installation" in text
    assert "Support" in text, "the sizes of projects are the installation's"
    assert ended.name not in text


def test_another_projects_sizes_are_not_shown(
    ended: TrainingRun, client: Client, other_project: Project, otto: User
) -> None:
    run = make_run(other_project, make_dataset(other_project, "Foreign"), make_base_model(other_project))
    assert run.job
    put(f"logs/job-{run.job.pk}.log", 10)
    take_sizes()
    client.force_login(otto)
    text = client.get(reverse("storage-index")).content.decode()
    assert "Clean up" not in text
    assert ended.name not in text or run.name == ended.name
    assert "5 kB" not in text


@pytest.mark.parametrize("person", ["vera", "ed"])
def test_only_managers_see_it(client: Client, request: pytest.FixtureRequest, person: str) -> None:
    client.force_login(request.getfixturevalue(person))
    assert client.get(reverse("storage-index")).status_code == 403
    assert reverse("storage-index") not in client.get(reverse("settings")).content.decode()


def test_it_takes_few_queries_however_much_there_is(
    ended: TrainingRun,
    project: Project,
    client: Client,
    mara: User,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    for number in range(300):
        put(f"logs/job-{100_000 + number}.log", 1)
    take_sizes()
    client.force_login(mara)
    with django_assert_max_num_queries(14):
        assert client.get(reverse("storage-index")).status_code == 200


def safe_to_remove(page: str) -> list[str]:
    """The last column of the sizes."""
    return re.findall(r'data-label="Safe to remove"\s+class="num">([^<]*)<', page)


def test_in_another_databases_folder_no_clean_up_is_offered(
    ended: TrainingRun, mara: User, page: Callable[[], str], request: pytest.FixtureRequest
) -> None:
    mark = Path(settings.DATA_DIR) / "installation-id"
    request.addfinalizer(lambda: mark.unlink(missing_ok=True))
    mark.unlink(missing_ok=True)
    take_sizes()
    assert 'commandfor="clean-up-project"' in page()
    assert safe_to_remove(page())[0] == "5 kB"
    CleanUp.objects.request(ended.project, mara)
    mark.write_text("another database wrote this\n")
    assert "The data folder belongs to another database, so Graftworks deletes none of its files" in page()
    assert "clean-up-project" not in page()
    assert set(safe_to_remove(page())) == {"–"}
    assert "waits for the dispatcher" not in page(), "it waits for the right folder"
    CleanUp.objects.all().delete()
    assert "clean-up-project" not in page()
