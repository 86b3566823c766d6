"""A data folder with a year of work: 10,850 runs with curves, 100 studies of 12 arms, 19,000 jobs.

Seeded, and kept in .cache/bench until the tables or this file change. Rows are copies of a few that the
product made; no adapter has files. Call `settle` before anything imports Django's settings.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import random
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS, ALONE, ARMS, SEEDS = 100, 48, 12, 5
RUNS, JOBS, WAITING = 10_850, 19_000, 1_000
ROWS, STUDY_ROWS = 200, 40
CURVES = {
    "train/loss": 1000,
    "train/learning_rate": 100,
    "train/grad_norm": 100,
    "validation/loss": 20,
    "system/memory_bytes": 100,
}
SHAPES = {
    "self_attn.q_proj": ("attn_q", 576, 576),
    "self_attn.k_proj": ("attn_k", 576, 192),
    "self_attn.v_proj": ("attn_v", 576, 192),
    "self_attn.o_proj": ("attn_out", 576, 576),
    "mlp.gate_proj": ("mlp_gate", 576, 1536),
    "mlp.up_proj": ("mlp_up", 576, 1536),
    "mlp.down_proj": ("mlp_down", 1536, 576),
}
PRESETS = ("efficient", "balanced", "quality", "mlp")


def settle() -> Path:
    """Build the load set unless it is there; configure Django for it and return its folder."""
    tables = (ROOT / "dashboard/migrations/0001_initial.py").read_bytes()
    name = hashlib.sha256(tables + Path(__file__).read_bytes()).hexdigest()[:16]
    folder = Path(os.environ.get("BENCH_DIR", ROOT / ".cache/bench")) / f"pages-{name}"
    is_new = not (folder / "complete").exists()
    if is_new:
        for outdated in folder.parent.glob("pages-*"):
            shutil.rmtree(outdated)
    os.environ |= {"DATA_DIR": str(folder), "DJANGO_SETTINGS_MODULE": "dashboard.settings"}
    for setting in ("DATABASE_URL", "REDIS_URL", "PUBLIC_URL"):
        os.environ.pop(setting, None)
    import django

    django.setup()
    if is_new:
        from django.core.management import call_command
        from django.db import transaction

        call_command("migrate", verbosity=0)
        call_command("createcachetable", verbosity=0)
        with transaction.atomic():
            LoadSet().fill()
        (folder / "complete").touch()
    return folder


class LoadSet:
    """The rows of one large project, and the waiting jobs of a second one."""

    def __init__(self) -> None:
        from django.utils import timezone

        from dashboard import models

        self.models, self.draw, self.now = models, random.Random(7), timezone.now()
        self.project = models.Project.objects.named("Support")
        self.other = models.Project.objects.named("Search")
        self.users = [models.User.objects.create(email=f"{name}@example.org") for name in ("mara", "ed")]
        for user in self.users:
            self.project.admit(user, models.Role.MANAGER)
            self.other.admit(user, models.Role.EDITOR)
        models.ComputeBudget.objects.change(self.project, 500.0, self.users[0])
        self.configs = [models.TargetModuleConfig.objects.get(slug=slug) for slug in PRESETS]
        self.base = self.base_model()
        self.versions = [self.dataset(number) for number in range(20)]
        self.prototypes = [self.prototype(config) for config in self.configs]
        self.curves = {name: [self.curve(count) for _ in range(20)] for name, count in CURVES.items()}
        self.bases: dict[int, Any] = {}

    def fill(self) -> None:
        for step in range(STEPS):
            at = self.now - timedelta(days=365) * (1 - step / STEPS) + timedelta(hours=1)
            self.runs_alone(at, ALONE, with_items=step >= STEPS - 5)
            self.study(step, at + timedelta(days=1))
        self.runs_alone(
            self.now - timedelta(hours=9), RUNS - self.models.TrainingRun.objects.count(), with_items=True
        )
        jobs = self.models.Job.objects
        self.jobs("serve", [{}] * (JOBS - WAITING - jobs.count()), self.now - timedelta(days=90))
        self.running()
        from django.db.models import OuterRef, Subquery

        submitted = self.models.Job.objects.filter(pk=OuterRef("job")).values("created_at")[:1]
        self.models.TrainingRun.objects.update(created_at=Subquery(submitted))
        # Rows written in bulk tell nobody of their scores.
        from dashboard.models.evaluations.run_score import RunScore

        keys = list(self.models.TrainingRun.objects.filter(outcome="succeeded").values_list("pk", flat=True))
        for begin in range(0, len(keys), 500):
            RunScore.objects.refresh(keys[begin : begin + 500])

    def base_model(self) -> Any:
        from workers.target_modules.census import Census, Group

        layers = tuple(range(30))
        groups = [
            Group(f"model.layers.*.{name}", role, "decoder", "linear", layers, d_in, d_out)
            for name, (role, d_in, d_out) in SHAPES.items()
        ]
        census = Census("llama", 134_515_008, 576, 30, 8192, 49_152, (*groups,), True, True).to_dict()
        base = self.models.BaseModel.objects.create(
            project=self.project, source="folder", folder="smol", name="SmolLM2-135M", hub_id="example/smol"
        )
        base.job = self.jobs("inspect", [{}], self.now - timedelta(days=366))[0]
        base.save()
        base.record_inspection(
            {"census": census, "path": "/nowhere", "sha256": "ab" * 32, "parameters": 134_515_008}
        )
        return base

    def dataset(self, number: int) -> Any:
        dataset = self.models.Dataset.objects.named(self.project, f"Tickets {number}", self.users[1])
        job = self.jobs("import", [{}], self.now - timedelta(days=366))[0]
        version = self.models.DatasetVersion.objects.create(
            project=self.project,
            dataset=dataset,
            version=1,
            job=job,
            created_by=self.users[1],
            size_bytes=10**6,
        )
        splits = {"train": 2000, "validation": 100, "test": ROWS}
        hashes = {"sha256": f"{number:064x}", "test_sha256": f"{number:064x}"}
        version.record_import(
            {
                "rows": 2300,
                "splits": splits,
                "problems": [],
                "answers": "label",
                **hashes,
                "shape": "messages",
            }
        )
        return version

    def prototype(self, config: Any) -> Any:
        from dashboard.models.training.forecast import forecast_run
        from workers.contract.hyperparameters import Hyperparameters

        run = self.models.TrainingRun(
            project=self.project, base_model=self.base, dataset_version=self.versions[0],
            target_module_config=config, created_by=self.users[1],
        )  # fmt: skip
        run.freeze(Hyperparameters(r=16, max_steps=1000, max_length=512))
        run.forecast = forecast_run(run)
        return run

    def curve(self, count: int) -> list[tuple[int, float]]:
        noise = self.draw.random
        return [
            (1000 * step // count, 1 + 2 * math.exp(-step / count) + noise()) for step in range(1, count + 1)
        ]

    def jobs(self, kind: str, specs: list[dict[str, Any]], at: datetime) -> list[Any]:
        """Create ended jobs with their history, a minute after one another and ten minutes long each."""
        queue = {"train": "gpu", "evaluate": "gpu", "serve": "serve"}.get(kind, "cpu")
        times = [at + timedelta(minutes=place) for place in range(len(specs))]
        jobs = self.models.Job.objects.bulk_create(
            self.models.Job(
                project=self.project, kind=kind, queue=queue, state="succeeded", spec=spec, attempt=1,
                created_by=self.users[place % 2], created_at=begin, run_after=begin, started_at=begin,
                finished_at=begin + timedelta(minutes=10), worker="gpu0@host", step=1000, total_steps=1000,
            )
            for place, (spec, begin) in enumerate(zip(specs, times, strict=True))
        )  # fmt: skip
        self.history(jobs)
        return jobs

    def history(self, jobs: list[Any]) -> None:
        path = ("submit", "queued", "claim", "starting", "progress", "running", "work_done", "finalizing")
        moves = [*zip(path[::2], path[1::2], strict=True), ("succeed", "succeeded")]
        events = []
        for job in jobs:
            source = "queued"
            for seq, (event, target) in enumerate(moves, 1):
                at = job.created_at if seq < 3 else job.finished_at
                events.append(
                    self.models.JobEvent(
                        job=job,
                        seq=seq,
                        attempt=1,
                        event=event,
                        from_state=source,
                        to_state=target,
                        created_at=at,
                    )
                )
                source = target
        self.models.JobEvent.objects.bulk_create(events)

    def runs(self, at: datetime, facts: list[dict[str, Any]]) -> list[Any]:
        """Create finished runs with jobs, curves and adapters; `facts`: config, version, seed and name."""
        runs = []
        for fact in facts:
            run = copy.copy(self.prototypes[fact["config"] % len(PRESETS)])
            run.name, run.study_arm, run.dataset_version = fact["name"], fact.get("arm"), fact["version"]
            learn = run.spec["hyperparameters"] | {"seed": fact["seed"]}
            if run.study_arm is None:
                # No two of them are one arm on the Compare page.
                learn["learning_rate"] = 1e-5 * (10 + fact["seed"])
            run.spec = run.spec | {"hyperparameters": learn}
            run.outcome, run.ended_step = "succeeded", 1000
            run.measured = {
                "seconds": 550.0,
                "wall_seconds": 600.0,
                "peak_memory_bytes": 9e8,
                "validation_loss": 1.1,
            }
            runs.append(run)
        for run, job in zip(runs, self.jobs("train", [run.spec for run in runs], at), strict=True):
            run.job = job
        runs = self.models.TrainingRun.objects.bulk_create(runs)
        self.models.Adapter.objects.bulk_create(
            self.models.Adapter(
                project=self.project, run=run, name=run.name, version=1, base_model=self.base,
                folder=f"{run.pk:064x}", files={}, sha256=f"{run.pk:064x}", size_bytes=10**7 + run.pk,
            )
            for run in runs
        )  # fmt: skip
        series = list(self.series(runs))
        self.models.MetricSeries.objects.bulk_create(one for one, _ in series)
        from dashboard.models.training.metric_series import MetricChunk

        MetricChunk.objects.bulk_create(MetricChunk.of(one, points) for one, points in series)
        return runs

    def series(self, runs: list[Any]) -> Iterator[tuple[Any, list[tuple[int, float]]]]:
        for run in runs:
            for name in CURVES:
                points = self.draw.choice(self.curves[name])
                values = [value for _step, value in points]
                yield self.models.MetricSeries(
                    run=run, name=name, count=len(points), first_step=points[0][0], last_step=1000,
                    last=values[-1], low=min(values), high=max(values),
                ), points  # fmt: skip

    def evaluate(self, runs: list[Any], job_of: list[Any], rows: int, metric: str) -> None:
        """Score adapters; the base model's scores of a dataset are kept once."""
        for run, job in zip(runs, job_of, strict=True):
            if run.dataset_version_id not in self.bases:
                base = self.evaluation(run, job, ROWS, 0.3, subject="base", number_format="fp32")
                self.bases[run.dataset_version_id] = base
                base.save()
                self.items([base], ROWS, metric)
        made = self.models.Evaluation.objects.bulk_create(
            self.evaluation(
                run, job, rows, self.draw.uniform(0.5, 0.8), subject="adapter",
                adapter=run.adapter, base_evaluation=self.bases[run.dataset_version_id],
            )
            for run, job in zip(runs, job_of, strict=True)
        )  # fmt: skip
        self.items(made if rows else [], rows, metric)

    def evaluation(self, run: Any, job: Any, rows: int, score: float, **values: Any) -> Any:
        metrics = {
            "exact_match": score,
            "token_f1": score,
            "loss": 1.0,
            "general_loss": 2.0,
            "ms_per_token": 20.0,
        }
        marks = {"version": 1, "sha256": "cd" * 32, "choices": 4, "marks": [1, 0, 1, 1] * 25}
        return self.models.Evaluation(
            project=self.project, run=run, job=job, base_model=self.base, dataset_version=run.dataset_version,
            split="test", rows=rows or ROWS, metrics=metrics, general_questions=marks, **values,
        )  # fmt: skip

    def items(self, evaluations: list[Any], rows: int, metric: str) -> None:
        text = "The printer on the second floor says PC LOAD LETTER and the queue is stuck. " * 3
        self.models.EvaluationItem.objects.bulk_create(
            self.models.EvaluationItem(
                evaluation=one, row=row, prompt=text, expected="hardware", output="hardware",
                scores={"token_f1": 0.5, metric: float(self.draw.random() < one.metrics["exact_match"])},
            )
            for one in evaluations
            for row in range(1, rows + 1)
        )  # fmt: skip

    def runs_alone(self, at: datetime, count: int, *, with_items: bool) -> None:
        facts = [
            {
                "config": place, "version": self.versions[place // 25 % 20], "seed": place,
                "name": f"Triage {at:%y%m%d} {place}",
            }
            for place in range(count)
        ]  # fmt: skip
        runs = self.runs(at, facts)
        jobs = self.jobs("evaluate", [{}] * count, at + timedelta(minutes=15))
        self.evaluate(runs, jobs, ROWS if with_items else 0, "exact_match")

    def study(self, step: int, at: datetime) -> None:
        study = self.models.Study.objects.create(
            project=self.project, name=f"Placement {step}", dataset_version=self.versions[step % 20],
            base_model=self.base, metric="exact_match", margin=0.05, seeds=list(range(1, SEEDS + 1)),
            created_by=self.users[0], forecast_seconds=6e4,
        )  # fmt: skip
        arms = [
            study.arms.create(
                position=place, name=f"{PRESETS[place % 4]} {place // 4}", is_reference=place == 2,
                target_module_config=self.configs[place % 4],
                hyperparameters=self.prototypes[place % 4].spec["hyperparameters"],
            )
            for place in range(ARMS)
        ]  # fmt: skip
        facts = [
            {
                "config": arm.position, "version": study.dataset_version, "seed": seed, "arm": arm,
                "name": f"{study.name} · {arm.name} · seed {seed}",
            }
            for seed in study.seeds
            for arm in arms
        ]  # fmt: skip
        runs = self.runs(at, facts)
        jobs = self.jobs("evaluate", [{}] * SEEDS, at + timedelta(minutes=90))
        self.evaluate(runs, [jobs[run.seed - 1] for run in runs], STUDY_ROWS, "exact_match")
        if step % 25 == 0:
            study.advance()
            self.ended = study
        study.finished_at, study.stored_result = at + timedelta(hours=2), self.ended.stored_result
        own = {"id": study.pk, "name": study.name, "dataset": study.dataset_version.dataset_id}
        study.stored_summary = self.ended.stored_summary | own
        study.save()

    def running(self) -> None:
        """Add two workers with a running training each, and many waiting ones of two projects."""
        jobs = self.models.Job.objects
        for place in range(WAITING):
            project = self.project if place % 10 == 0 else self.other
            run = copy.copy(self.prototypes[place % len(PRESETS)])
            run.project, run.name, run.created_by = project, f"Waiting {place}", self.users[place % 2]
            run.job = jobs.submit(self.models.Job.Kind.TRAIN, run.spec, project=project, by=run.created_by)
            run.save()
        for place, job in enumerate(jobs.filter(state="queued", project=self.project).order_by("pk")[:2]):
            name = f"gpu{place}@host"
            self.models.WorkerNode.objects.create(name=name, queue="gpu", host="host", pid=1, device="cpu")
            job.move("claim", attempt=1, worker=name, slot=name, started_at=self.now)
            job.move("progress")
            job.update_progress(step=300, total_steps=1000, phase="training", eta_seconds=400.0)
