"""Reports the progress of a download from the hub."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from workers.contract.events import Event, Progress
from workers.engine.base_models import inspect_model


def test_download_reports_the_bytes_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_model, "DOWNLOAD_REPORT_SECONDS", 0.01)
    said: list[Event] = []
    blob = tmp_path / "models--example--tiny" / "blobs" / "ab.incomplete"
    with inspect_model.report_download(tmp_path, 1000, said.append):
        blob.parent.mkdir(parents=True)
        for size in (300, 600):
            blob.write_bytes(b"x" * size)
            deadline = time.monotonic() + 10
            while said[-1:] != [Progress("downloading", size, 1000)]:
                assert time.monotonic() < deadline, said
                time.sleep(0.01)
