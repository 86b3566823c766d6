"""An importer with a tiny tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.importing.uploads import Importer
from tests.tiny_model import build_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def load(tokenizer: Path, tmp_path: Path) -> Importer:
    return Importer(tokenizer, tmp_path)
