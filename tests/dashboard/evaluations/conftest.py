"""A finished study, whose answers are judged."""

from __future__ import annotations

import pytest

from dashboard.models import BaseModel, Dataset, Project, Study, User
from tests.dashboard.studies.factories import finished_study


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    return finished_study(project, dataset, base_model, ed)
