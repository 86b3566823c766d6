"""Lists and curves beside MLflow's: `MLFLOW=…/bin/mlflow python -m tests.bench.tracker`.

MLFLOW names the program of MLflow 3.17 in an environment of its own. Its SQLite store gets the runs, points,
scores and settings of the load set, and both servers, with two web processes each, answer the same questions
in turn over HTTP on loopback. Prints how long each took, and the ratio at p95.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import httpx2

from tests.bench import load_set, pages
from tests.bench.load import SERVER
from tests.servers import free_port

REPEATS = int(os.environ.get("TRACKER_REPEATS", "20"))
GOAL = 5
START_SECONDS = 60
EXPERIMENT = 1
Ask = Callable[[], httpx2.Response]


class Store:
    """MLflow's SQLite store, filled with a copy of the load set."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.path = program, folder / "mlflow.db"
        self.url = f"sqlite:///{self.path}"

    def make(self) -> None:
        """Fill the store unless it is there."""
        complete = self.path.with_suffix(".complete")
        if complete.exists():
            return
        for outdated in self.path.parents[1].glob("mlflow-*"):
            shutil.rmtree(outdated)
        self.path.parent.mkdir()
        environment = os.environ | {"MLFLOW_TRACKING_URI": self.url}
        command = [self.program, "experiments", "create", "--experiment-name", "Support"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        with contextlib.closing(sqlite3.connect(self.path)) as store, store:
            for run in self._runs():
                self._copy(store, run)
            # Without statistics SQLite reads every run's points of a name for one curve.
            store.execute("ANALYZE")
        complete.touch()

    def _runs(self) -> Iterator[Any]:
        from dashboard.models import TrainingRun

        runs = TrainingRun.objects.select_related("target_module_config", "dataset_version__dataset")
        return runs.prefetch_related("stored_scores", "metric_series__chunks").iterator(chunk_size=200)

    def _copy(self, store: sqlite3.Connection, run: Any) -> None:
        key, at = f"{run.pk:032x}", int(run.created_at.astimezone(UTC).timestamp() * 1000)
        status = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}.get(
            run.outcome, "RUNNING"
        )
        store.execute(
            "INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, end_time,"
            " lifecycle_stage, artifact_uri, experiment_id)"
            " VALUES (?, ?, 'LOCAL', 'mara', ?, ?, ?, 'active', ?, ?)",
            (key, run.name, status, at, at + 600_000, f"mlflow-artifacts:/1/{key}", EXPERIMENT),
        )
        settings = {
            "preset": run.target_module_config.slug,
            "dataset": run.dataset_version.dataset.name,
            "seed": run.seed,
        }
        settings |= {name: value for name, value in run.hyperparameters.items() if value is not None}
        params = [(name, str(value), key) for name, value in settings.items()]
        store.executemany("INSERT OR IGNORE INTO params VALUES (?, ?, ?)", params)
        tags = [("mlflow.runName", run.name, key), ("mlflow.user", "mara", key)]
        store.executemany("INSERT INTO tags VALUES (?, ?, ?)", tags)
        points = [
            (series.name, value, at + step, step, 0, key)
            for series in run.metric_series.all()
            for step, value in series.points(-1)
        ]
        points += [(f"test/{score.metric}", score.value, at, 0, 0, key) for score in run.stored_scores.all()]
        store.executemany(
            "INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)",
            points,
        )
        last = {point[0]: point for point in points}
        store.executemany(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            list(last.values()),
        )

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        """Yield the address of MLflow's server."""
        port = free_port()
        command = [self.program, "server", "--backend-store-uri", self.url, "--port", str(port)]
        command += ["--host", "127.0.0.1", "--workers", "2"]
        with serving(command, f"http://127.0.0.1:{port}", self.path.parent / "mlflow.log") as url:
            yield url


@contextlib.contextmanager
def serving(command: list[str], url: str, log: Path) -> Iterator[str]:
    """Run a server until the end of the block."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=load_set.ROOT, start_new_session=True
        )
        try:
            ends_at = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(httpx2.HTTPError):
                    httpx2.get(url, timeout=5)
                    break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < ends_at, log.read_text()
                time.sleep(0.3)
            yield url
        finally:
            process.terminate()
            process.wait()


def questions(ours: httpx2.Client, peer: httpx2.Client) -> dict[str, tuple[list[Ask], list[Ask]]]:
    """Return the requests of both for each question."""
    from dashboard.models import TrainingRun

    ended = TrainingRun.objects.filter(outcome="succeeded", study_arm=None)[:20]
    keys = list(ended.values_list("pk", flat=True))
    preset = TrainingRun.objects.get(pk=keys[0]).target_module_config

    def runs(**chosen: str | float) -> Ask:
        return lambda: ours.get("/api/v1/runs", params={"limit": 50, **chosen})

    def search(order: str, filters: str = "") -> Ask:
        body = {
            "experiment_ids": [str(EXPERIMENT)],
            "max_results": 50,
            "order_by": [order],
            "filter": filters,
        }
        return lambda: peer.post("/api/2.0/mlflow/runs/search", json=body)

    def curve(pk: int) -> Ask:
        return lambda: ours.get(f"/api/v1/runs/{pk}/metrics", params={"name": "train/loss"})

    def history(pk: int) -> Ask:
        chosen = {"run_id": f"{pk:032x}", "metric_key": "train/loss"}
        return lambda: peer.get("/api/2.0/mlflow/metrics/get-history", params=chosen)

    def curves() -> httpx2.Response:
        return ours.get("/api/v1/curves", params={"name": "train/loss", "run": keys})

    def histories() -> httpx2.Response:
        """Ask as its own page does; its documented API and its client ask for one run at a time."""
        chosen = {"run_id": [f"{pk:032x}" for pk in keys], "metric_key": "train/loss"}
        return peer.get("/ajax-api/2.0/mlflow/metrics/get-history-bulk", params=chosen)

    newest, best = "attributes.start_time DESC", "metrics.`test/exact_match` DESC"
    return {
        "newest 50": ([runs()], [search(newest)]),
        "sorted by a score": ([runs(sort="-exact_match")], [search(best)]),
        "filtered and sorted": (
            [runs(target_module_config=preset.pk, metric="exact_match", min=0.2, sort="-exact_match")],
            [search(best, f"params.preset = '{preset.slug}' and metrics.`test/exact_match` >= 0.2")],
        ),
        "one curve": ([curve(keys[0])], [history(keys[0])]),
        "20 curves": ([curves], [history(pk) for pk in keys]),
        "20, its page's request": ([curves], [histories]),
        "20, one by one": ([curve(pk) for pk in keys], [history(pk) for pk in keys]),
    }


def take(requests: list[Ask]) -> tuple[float, list[httpx2.Response]]:
    """Return the milliseconds of the requests, one after the other, and the answers."""
    begin = time.monotonic()
    answers = [request() for request in requests]
    taken = 1000 * (time.monotonic() - begin)
    for answer in answers:
        assert answer.status_code == 200, answer.text[:500]
    return taken, answers


def compare(name: str, ours: list[Ask], theirs: list[Ask]) -> None:
    """Ask both in turn, and print a line."""
    # The first answers fill caches, and must be of one length.
    lengths = [sum(count(answer.json()) for answer in take(requests)[1]) for requests in (ours, theirs)]
    assert lengths[0] == lengths[1], f"{name}: {lengths}"
    taken: tuple[list[float], list[float]] = ([], [])
    for repeat in range(REPEATS):
        for side in (0, 1) if repeat % 2 else (1, 0):
            taken[side].append(take((ours, theirs)[side])[0])
    mine, peer = ((statistics.median(times), statistics.quantiles(times, n=20)[18]) for times in taken)
    ratio = peer[1] / mine[1]
    print(
        f"{name:22}{mine[0]:>8.1f}{peer[0]:>10.1f}{mine[1]:>10.1f}{peer[1]:>10.1f}{ratio:>8.1f}"
        + ("" if ratio >= GOAL else " !")
    )


def count(answer: dict[str, Any]) -> int:
    """Return the number of runs or points in an answer."""
    found = next(answer[name] for name in ("data", "points", "runs", "metrics") if name in answer)
    return sum(len(one["points"]) if "points" in one else 1 for one in found)


def main() -> None:
    program = os.environ.get("MLFLOW") or shutil.which("mlflow")
    if not program:
        print("Not compared with MLflow: set MLFLOW to its program, for example of a virtual environment.")
        return
    folder = load_set.settle()
    store = Store(program, folder.with_name(f"mlflow-{folder.name}"))
    store.make()
    _browser, api = pages.clients()
    token, port = {"Authorization": api.defaults["HTTP_AUTHORIZATION"]}, free_port()
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    ours_url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", SERVER, str(port)]
    os.environ["API_READS_PER_MINUTE"] = str(10**6)
    with (
        serving(command, ours_url, store.path.with_name("ours.log")),
        store.serve() as peer_url,
        httpx2.Client(base_url=ours_url, headers=token, timeout=60) as ours,
        httpx2.Client(base_url=peer_url, timeout=60) as peer,
    ):
        print(f"load {os.getloadavg()[0]:.1f}, {REPEATS} times each, wall milliseconds")
        print(f"{'':22}{'median':>8}{'MLflow':>10}{'p95':>10}{'MLflow':>10}{'ratio':>8}")
        for name, (mine, theirs) in questions(ours, peer).items():
            compare(name, mine, theirs)


if __name__ == "__main__":
    main()
