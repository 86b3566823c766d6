"""`manage.py measure_forecast`: drawn settings, predictions, output and failures."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from dashboard.management.commands import measure_forecast
from dashboard.management.commands.measure_forecast import Bench, Measurement, cross_validate, draw_settings
from tests.engine_server import forked_engines  # noqa: F401 - a fixture
from workers.contract.hyperparameters import Hyperparameters
from workers.target_modules.presets import PRESETS


class FakeBench:
    """A machine on which each setting takes a third more time and 10 % more memory than the formula."""

    seconds: Iterator[float] = itertools.repeat(1.33)

    def __init__(self, _folder: Path, _dtype: str, _device: str) -> None: ...

    def measure(self, slug: str, hyperparameters: Hyperparameters) -> Measurement:
        """Return the estimate, multiplied by the factors above."""
        return Measurement(slug, hyperparameters, 1e9, 20.0, 1.1e9, 20.0 * next(self.seconds))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> type[FakeBench]:
    monkeypatch.setattr(measure_forecast, "Bench", FakeBench)
    monkeypatch.setattr(FakeBench, "seconds", itertools.repeat(1.33))
    return FakeBench


def measure(*options: str) -> str:
    said = io.StringIO()
    call_command("measure_forecast", *options, stdout=said)
    return said.getvalue()


def test_a_seed_repeats_the_drawn_settings() -> None:
    first, again, other = (list(itertools.islice(draw_settings(seed), 18)) for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)
    assert len(set(first)) == 18
    assert {slug for slug, _learn in first} == set(PRESETS)


def test_drawn_settings_vary_and_stay_small() -> None:
    found = [hyperparameters for _slug, hyperparameters in itertools.islice(draw_settings(3), 200)]
    for name in ("r", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length"):
        assert len({getattr(hyperparameters, name) for hyperparameters in found}) >= 3, name
    assert 0 < sum(hyperparameters.gradient_checkpointing for hyperparameters in found) < 100
    assert 0 < sum(hyperparameters.lora_dropout > 0 for hyperparameters in found) < 100
    assert all(
        hyperparameters.per_device_train_batch_size * hyperparameters.max_length <= 2048
        for hyperparameters in found
    )
    rows = [hyperparameters.rows_per_step * (hyperparameters.max_steps or 0) for hyperparameters in found]
    assert min(rows) >= 24
    assert max(rows) <= 48


def test_each_setting_is_predicted_from_the_others() -> None:
    slug, hyperparameters = next(draw_settings(1))
    usual = Measurement(slug, hyperparameters, 1e9, 10.0, 1e9, 10.0)
    odd = dataclasses.replace(usual, bytes=3e9, seconds=30.0)
    results = cross_validate([*(dataclasses.replace(usual) for _time in range(7)), odd])
    assert results[-1].memory_error == pytest.approx(1 / 3 - 1, abs=0.02)
    assert results[-1].time_error == pytest.approx(1 / 3 - 1, abs=0.02)


def test_it_prints_each_setting_and_a_summary(bench: type[FakeBench]) -> None:
    said = measure("--count", "6", "--seed", "4")
    assert "6 settings drawn with --seed 4" in said
    (head,) = (line for line in said.splitlines() if line.startswith("preset"))
    assert " ".join(head.split()) == "preset r batch length steps memory, GB off seconds off"
    lines = said.split(head)[1].strip().splitlines()[:6]
    assert all("/ 1.10" in line and "/ 26.6" in line for line in lines)
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert "Memory: 6 of 6 within 15%, worst +0.0%" in said
    assert "Time: 6 of 6 within 25%, worst +0.0%" in said


def test_it_fails_when_a_goal_is_missed(bench: type[FakeBench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "seconds", iter([1.33] * 5 + [3.0]))
    said = io.StringIO()
    with pytest.raises(CommandError, match="A goal was missed"):
        call_command("measure_forecast", "--count", "6", stdout=said)
    assert "Time: 5 of 6 within 25%, worst -5" in said.getvalue()


def test_it_respects_the_time_limit(bench: type[FakeBench], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=50)
    monkeypatch.setattr(measure_forecast.time, "monotonic", lambda: float(next(clock)))
    said = measure("--count", "18", "--minutes", "15")
    measured = said.count("\nmeasured ")
    assert 3 <= measured < 18
    assert f"Time is short: {measured} of 18 settings were measured." in said
    assert f"Memory: {measured} of {measured} within" in said
    with pytest.raises(CommandError, match="Allow more minutes"):
        measure("--minutes", "1")


def test_it_requires_three_settings(bench: type[FakeBench]) -> None:
    with pytest.raises(CommandError, match="at least 3"):
        measure("--count", "2")


@pytest.mark.slow
def test_bench_trains_and_measures(tmp_path: Path, tiny_folder: Path, settings: Any) -> None:
    settings.BUNDLED_MODEL_DIR = tiny_folder
    slug, drawn = next(draw_settings(5))
    # Enough steps for the resolution of processor time, a hundredth of a second.
    hyperparameters = dataclasses.replace(drawn, max_steps=40, num_train_epochs=None)
    measurement = Bench(tmp_path, "float32", "cpu").measure(slug, hyperparameters)
    # How near a toy's forecast is says nothing: only that there is one.
    assert measurement.estimated_bytes > 0
    assert measurement.estimated_seconds > 0
    assert measurement.seconds > 0
    assert measurement.bytes > 0.2e9, "a process with torch"


def test_bench_refuses_another_device(
    tmp_path: Path, tiny_folder: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings.BUNDLED_MODEL_DIR = tiny_folder
    bench = Bench(tmp_path, "float32", "cuda")
    with pytest.raises(CommandError, match="found no cuda device, but cpu"):
        bench.measure(*next(draw_settings(5)))
