"""The points of a curve that a resumed run reports again, because its worker may not have stored them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.engine.conftest import Recorder
from workers.contract.events import Metrics
from workers.engine.training import checkpoints
from workers.supervision import database_outage, stop_policy


def test_replayed_metrics_cover_the_longest_database_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four arms at a step a second; a worker waits for its database, then for its engine to stop."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    writer = checkpoints.CheckpointWriter(
        tmp_path, 180.0, Recorder(), {}, torch.float32, torch.device("cpu"), run_started=now[0]
    )
    for step in range(1, 3601):
        now[0] += 1.0
        for arm in range(4):
            writer.report_metrics(Metrics(arm, step, {"train/loss": 1.0}))
    seconds = round(
        stop_policy.OUTAGE_SECONDS + max(stop_policy.GRACE_SECONDS.values()) + database_outage.ANSWER_SECONDS
    )
    lost = [(arm, step) for step in range(3600 - seconds, 3601) for arm in range(4)]
    kept = [(point.arm, point.step) for _told, point in writer.recent_metrics]
    assert kept[-len(lost) :] == lost
    assert len(kept) < 2 * len(lost), "and not the whole run"


def test_replayed_metrics_are_limited_in_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "REPLAY_POINTS", 100)
    writer = checkpoints.CheckpointWriter(
        tmp_path, 180.0, Recorder(), {}, torch.float32, torch.device("cpu"), run_started=0.0
    )
    for step in range(1, 1001):
        writer.report_metrics(Metrics(0, step, {"train/loss": 1.0}))
    assert [point.step for _told, point in writer.recent_metrics] == list(range(901, 1001))
