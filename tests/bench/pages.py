"""Processor time, queries and size of every page and API list at the load set: `python -m tests.bench.pages`.

Each address is asked PAGES_REPEATS times (5) in turn with the others, in this process and without a network;
the median counts. Processor time of a busy machine is longer than that of a quiet one.
"""

from __future__ import annotations

import gzip
import os
import statistics
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tests.bench import load_set

PAGE, COMPARISON, LIST = 40, 80, 30  # milliseconds


def addresses() -> Iterable[tuple[str, str, int]]:
    """Yield name, address and budget."""
    from dashboard.models import Adapter, Dataset, Study, TrainingRun

    ended = list(
        TrainingRun.objects.filter(outcome="succeeded", study_arm=None)[:20].values_list("pk", flat=True)
    )
    live = TrainingRun.objects.filter(job__state="running").values_list("pk", flat=True)[0]
    of_study = TrainingRun.objects.exclude(study_arm=None)[0]
    study = Study.objects.exclude(finished_at=None)[0].pk
    dataset = Dataset.objects.filter(versions__pk=of_study.dataset_version_id)[0].pk
    base, version = of_study.base_model_id, of_study.dataset_version_id
    twenty = ",".join(map(str, ended))
    yield from (
        ("home", "/", PAGE),
        ("home, live region", "/running/", PAGE),
        ("runs", "/runs/", PAGE),
        ("runs, search", "/runs/?q=Triage", PAGE),
        ("runs, by score", "/runs/?sort=-exact_match&metric=exact_match&min=0.2", PAGE),
        ("run", f"/runs/{ended[0]}/", PAGE),
        ("run of a study", f"/runs/{of_study.pk}/", PAGE),
        ("run, running", f"/runs/{live}/", PAGE),
        ("run, live region", f"/runs/{live}/progress/", PAGE),
        ("run, curves", f"/runs/{ended[0]}/metrics/", PAGE),
        ("run, metrics.csv", f"/runs/{ended[0]}/metrics.csv", PAGE),
        ("compare 2", f"/compare/?runs={ended[0]},{ended[1]}", PAGE),
        ("compare 20", f"/compare/?runs={twenty}", COMPARISON),
        ("compare 20, curves", f"/compare/curves/?runs={twenty}", PAGE),
        ("compare.csv of 20", f"/compare/compare.csv?runs={twenty}", COMPARISON),
        ("compare.json of 20", f"/compare/compare.json?runs={twenty}", COMPARISON),
        ("studies", "/studies/", PAGE),
        ("study of 12 arms", f"/studies/{study}/", COMPARISON),
        ("study, report", f"/studies/{study}/report/", COMPARISON),
        ("study, answers", f"/studies/{study}/answers/", COMPARISON),
        ("study.json", f"/studies/{study}/study.json", COMPARISON),
        ("adapters", "/adapters/", PAGE),
        ("adapter", f"/adapters/{Adapter.objects.get(run=ended[0]).pk}/", PAGE),
        ("datasets", "/datasets/", PAGE),
        ("dataset", f"/datasets/{dataset}/", PAGE),
        ("base model", f"/settings/base-models/{base}/", PAGE),
        ("target modules", "/target-modules/", PAGE),
        ("fine-tune form", "/fine-tune/", PAGE),
        ("fine-tune forecast", f"/fine-tune/forecast/?base_model={base}&dataset_version={version}", PAGE),
        ("study form", "/studies/new/", PAGE),
        ("study plan", f"/studies/new/plan/?base_model={base}&dataset_version={version}&seeds=5", PAGE),
        ("queue", "/queue/", PAGE),
        ("queue, live region", "/queue/board/", PAGE),
        ("compute budget", "/settings/compute-budget/", PAGE),
        ("storage", "/settings/storage/", PAGE),
        ("health", "/settings/health/", PAGE),
        ("team", "/team/", PAGE),
        ("API runs", "/api/v1/runs", LIST),
        ("API runs, by score", "/api/v1/runs?sort=-exact_match", LIST),
        ("API run", f"/api/v1/runs/{ended[0]}", LIST),
        ("API metrics of a run", f"/api/v1/runs/{ended[0]}/metrics?name=train/loss", PAGE),
        ("API studies", "/api/v1/studies", LIST),
        ("API study", f"/api/v1/studies/{study}", LIST),
        ("API study, export", f"/api/v1/studies/{study}/export", COMPARISON),
        ("API adapters", "/api/v1/adapters", LIST),
        ("API jobs", "/api/v1/jobs", LIST),
        ("API datasets", "/api/v1/datasets", LIST),
        ("API compute budget", "/api/v1/compute-budget", LIST),
    )  # fmt: skip


def clients() -> tuple[Any, Any]:
    """Return a client with Mara's session and one with a token."""
    from django.conf import settings
    from django.test import Client
    from django.utils import timezone

    from dashboard.models import ApiToken, Project, User, WorkerNode

    # The load set may be days old, and without workers no start would be estimated.
    WorkerNode.objects.update(heartbeat_at=timezone.now() + timedelta(days=1))
    settings.ALLOWED_HOSTS = ["*"]
    settings.API_READS_PER_MINUTE = 10**6
    mara, project = User.objects.get(email="mara@example.org"), Project.objects.get(slug="support")
    browser = Client(HTTP_ACCEPT_ENCODING="gzip", raise_request_exception=False)
    browser.force_login(mara)
    session = browser.session
    session["project"] = project.pk
    session.save()
    return browser, Client(headers={"Authorization": f"Bearer {ApiToken.issue(project, mara, 'bench')[1]}"})


@dataclass(frozen=True)
class Answer:
    """One answer: processor milliseconds, queries, and bytes before and after compression."""

    status: int
    spent: float
    queries: int
    size: int
    sent: int


def ask(client: Any, address: str, *, count: bool = False) -> Answer:
    """Ask for an address; counting queries takes time itself, so times are those of other requests."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) if count else nullcontext([]) as queries:
        begin = time.process_time()
        answer = client.get(address)
        body = b"".join(answer.streaming_content) if answer.streaming else answer.content
        spent = 1000 * (time.process_time() - begin)
    whole = gzip.decompress(body) if answer.headers.get("Content-Encoding") == "gzip" else body
    return Answer(answer.status_code, spent, len(queries), len(whole), len(body))


def main() -> None:
    begin = time.process_time()
    folder = load_set.settle()
    print(f"{folder}, {time.process_time() - begin:.0f} s of a processor; load {os.getloadavg()[0]:.1f}")
    browser, program = clients()
    wanted = [entry for entry in addresses() if not sys.argv[1:] or entry[0] in sys.argv[1:]]
    answers: dict[str, list[Answer]] = {}
    for repeat in range(int(os.environ.get("PAGES_REPEATS", "5")) + 1):
        for name, address, _budget in wanted:
            client = program if address.startswith("/api/") else browser
            answers.setdefault(name, []).append(ask(client, address, count=repeat == 0))
    print(f"{'':24}{'ms':>7}{'budget':>8}{'queries':>9}{'kB':>7}{'sent':>7}")
    for name, _address, budget in wanted:
        # The first answer counts queries, and fills caches of the process.
        first, *others = answers[name]
        spent = statistics.median(answer.spent for answer in others)
        mark = "!" if spent > budget else ""
        mark = f"answered {first.status}" if first.status != 200 else mark
        sizes = f"{others[-1].size / 1000:>7.0f}{others[-1].sent / 1000:>7.0f}"
        print(f"{name:24}{spent:>7.0f}{budget:>8}{first.queries:>9}{sizes} {mark}")


if __name__ == "__main__":
    main()
