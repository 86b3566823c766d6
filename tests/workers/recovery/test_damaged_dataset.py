"""Importing the same file again repairs a damaged dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
from django.conf import settings

from dashboard.models import Dataset, DatasetVersion, Job, Project, State, User

WorkOff = Callable[[str], Job]
ROWS = "\n".join(f'{{"prompt": "number {n}", "completion": "is {n % 7}"}}' for n in range(40))


def rows(version: DatasetVersion, split: str) -> int:
    return int(pyarrow.parquet.read_table(version.folder() / f"{split}.parquet").num_rows)


def test_second_import_repairs_the_shared_folder(
    project: Project, ed: User, tiny_folder: Path, work_off: WorkOff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "BUNDLED_MODEL_DIR", tiny_folder)
    dataset = Dataset.objects.named(project, "Numbers", ed)

    def add() -> DatasetVersion:
        upload = Path(settings.UPLOAD_DIR) / "numbers.jsonl"
        upload.write_text(ROWS)
        version = dataset.add_version(upload, upload.name, by=ed)
        assert work_off("cpu").state == State.SUCCEEDED
        version.refresh_from_db()
        return version

    first = add()
    train = first.folder() / "train.parquet"
    train.write_bytes(train.read_bytes()[:-40])
    (first.folder() / "test.parquet").unlink()
    with pytest.raises(ValueError, match="corrupted"):
        rows(first, "train")
    second = add()
    assert (second.version, second.sha256) == (2, first.sha256)
    for version in (first, second):
        assert {split: rows(version, split) for split in version.splits} == first.splits
