"""One finished study with its people, made once for this folder; each test sees it unchanged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_django.plugin import DjangoDbBlocker

from dashboard.models import BaseModel, Dataset, Project, Role, Study, User
from tests.conftest import make_base_model, make_dataset, make_user
from tests.dashboard.conftest import rolled_back
from tests.dashboard.studies.factories import finished_study


@pytest.fixture(scope="package")
def finished(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[int]:
    """The key of the study."""
    with rolled_back(django_db_blocker):
        project = Project.objects.named("Support")
        make_user("mara@example.org", project, Role.MANAGER)
        make_user("vera@example.org", project, Role.VIEWER)
        ed = make_user("ed@example.org", project, Role.EDITOR)
        yield finished_study(project, make_dataset(project, by=ed), make_base_model(project), ed).pk


@pytest.fixture
def study(finished: int, db: None) -> Study:
    return Study.objects.with_facts().get(pk=finished)


@pytest.fixture
def project(finished: int, db: None) -> Project:
    return Project.objects.named("Support")


@pytest.fixture
def dataset(project: Project) -> Dataset:
    return project.datasets.get()


@pytest.fixture
def base_model(project: Project) -> BaseModel:
    return project.base_models.get()


@pytest.fixture
def mara(finished: int, db: None) -> User:
    return User.objects.get(email="mara@example.org")


@pytest.fixture
def ed(finished: int, db: None) -> User:
    return User.objects.get(email="ed@example.org")


@pytest.fixture
def vera(finished: int, db: None) -> User:
    return User.objects.get(email="vera@example.org")
