"""Many viewers at once: `python -m tests.bench.load`, on PostgreSQL with `python -m tests.servers` before it.

The product's web processes serve the load set, on PostgreSQL a tenth of it. LOAD_VIEWERS (200) open one page
each ten seconds, LOAD_STREAMS (50) follow runs live, and ten processes write those runs' curves, for
LOAD_SECONDS (60). Prints how long pages took, what was refused, and what failed; pages of the first ten
seconds, in which new web processes open every page for the first time, apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import NamedTuple

import httpx2
import psutil

from tests.bench import load_set, pages
from tests.servers import free_port

VIEWERS, STREAMS, SECONDS = (
    int(os.environ.get(f"LOAD_{name}", default))
    for name, default in (("VIEWERS", 200), ("STREAMS", 50), ("SECONDS", 60))
)
FIRST_SECONDS = 10.0
RUNS, PAGE_SECONDS, WRITE_SECONDS, POINTS = 10, 10.0, 1.0, 5
LOCKED = "database is locked"
SERVER = """
import sys, django
django.setup()
from dashboard.launcher.processes import Programs
from dashboard.management.commands import start
port = int(sys.argv[1])
listener = start.listen("127.0.0.1", port)
start.load_programs(None)
web = [program for program in start.program_list(listener, None) if program.listener]
sys.exit(Programs(web, is_ready=lambda: start.is_serving("127.0.0.1", port), greeting="ready").run())
"""


class Taken(NamedTuple):
    """A page, with its begin by the monotonic clock and its seconds; status 0 for none."""

    begin: float
    status: int
    seconds: float


def fill(folder: Path) -> None:
    """Copy the load set into the folder, or fill the PostgreSQL server that `tests.servers` has started."""
    url = os.environ.get("TEST_DATABASE_URL")
    if not url:
        made = load_set.settle()
        from django.db import connection

        connection.close()
        shutil.copytree(made, folder, dirs_exist_ok=True)
        connection.settings_dict["NAME"] = str(folder / "db.sqlite3")
        os.environ["DATA_DIR"] = str(folder)
        return
    os.environ |= {
        "DATABASE_URL": url,
        "DATA_DIR": str(folder),
        "DJANGO_SETTINGS_MODULE": "dashboard.settings",
    }
    load_set.STEPS, load_set.RUNS, load_set.JOBS, load_set.WAITING = 10, 1_085, 1_900, 100
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    load_set.LoadSet().fill()
    from django.db import connection

    # As autovacuum does within a minute.
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


def start_runs() -> list[int]:
    """Claim as many waiting trainings as are to be written; return the ids of their runs."""
    from dashboard.models import Job, TrainingRun

    missing = RUNS - TrainingRun.objects.filter(job__state="running").count()
    for place, job in enumerate(Job.objects.filter(state="queued", kind="train").order_by("pk")[:missing]):
        job.move("claim", attempt=1, worker=f"bench{place}@host", slot=f"bench{place}@host")
        job.move("progress")
    return list(TrainingRun.objects.filter(job__state="running").values_list("pk", flat=True)[:RUNS])


def write(run_id: int, ends_at: float, failures: Queue[str]) -> None:
    """Write a run's curve and progress each second, as a worker does."""
    from django.db import OperationalError

    from dashboard.models import MetricSeries, TrainingRun

    run, draw = TrainingRun.objects.select_related("job").get(pk=run_id), random.Random(run_id)
    last = run.metric_series.filter(name="train/loss").values_list("last_step", flat=True).first() or 0
    for step in itertools.count(last + 1, POINTS):
        if time.monotonic() > ends_at:
            return
        points = [(step + place, 1 + draw.random()) for place in range(POINTS)]
        try:
            MetricSeries.objects.append(run, "train/loss", points)
            run.job.update_progress(step=step, phase="training", eta_seconds=400.0)
            run.job.renew_lease()
        except OperationalError as error:
            failures.put(str(error))
        time.sleep(WRITE_SECONDS)


async def view(client: httpx2.AsyncClient, addresses: list[str], number: int, taken: list[Taken]) -> None:
    draw = random.Random(number)
    await asyncio.sleep(draw.uniform(0, PAGE_SECONDS))
    while True:
        begin = time.monotonic()
        try:
            status = (await client.get(draw.choice(addresses))).status_code
        except httpx2.HTTPError:
            status = 0
        taken.append(Taken(begin, status, time.monotonic() - begin))
        await asyncio.sleep(max(0.0, PAGE_SECONDS - (time.monotonic() - begin)))


async def follow(client: httpx2.AsyncClient, run: int, told: Counter[str]) -> None:
    """Count the events of a stream; one that ends or fails is opened again, as by a browser."""
    while True:
        with contextlib.suppress(httpx2.HTTPError):
            async with client.stream("GET", f"/runs/{run}/stream/") as answer:
                told[f"answered {answer.status_code}"] += 1
                async for line in answer.aiter_lines():
                    if line.startswith("event:"):
                        told[line] += 1
        told["broken"] += 1
        await asyncio.sleep(2)


async def visit(
    url: str, cookies: dict[str, str], addresses: list[str], runs: list[int]
) -> tuple[list[Taken], Counter[str]]:
    """Return what each page took, and the events of all streams."""
    taken: list[Taken] = []
    told: Counter[str] = Counter()
    # Below the five seconds after which the server closes an idle connection.
    limits = httpx2.Limits(max_connections=VIEWERS + STREAMS + 10, keepalive_expiry=2)
    async with httpx2.AsyncClient(base_url=url, cookies=cookies, limits=limits, timeout=60) as client:
        viewers = [view(client, addresses, number, taken) for number in range(VIEWERS)]
        streams = [follow(client, runs[number % len(runs)], told) for number in range(STREAMS)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*viewers, *streams), FIRST_SECONDS + SECONDS)
    return taken, told


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="graftworks-load-") as name, contextlib.ExitStack() as stack:
        fill(Path(name))
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        from django.conf import settings
        from django.db import connections

        runs, (browser, _program) = start_runs(), pages.clients()
        cookie = {settings.SESSION_COOKIE_NAME: browser.cookies[settings.SESSION_COOKIE_NAME].value}
        addresses = [address for _name, address, _ms in pages.addresses() if not address.startswith("/api/")]
        connections.close_all()
        port, log = free_port(), Path(name) / "web.log"
        output = stack.enter_context(log.open("w"))
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=output, stderr=output)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        while "ready" not in log.read_text():
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        context = get_context("fork")
        failures: Queue[str] = context.Queue()
        ends_at = time.monotonic() + FIRST_SECONDS + SECONDS
        writers = [context.Process(target=write, args=(run, ends_at, failures)) for run in runs]
        for writer in writers:
            writer.start()
        web = psutil.Process(server.pid).children()
        taken, told = asyncio.run(visit(f"http://127.0.0.1:{port}", cookie, addresses, runs))
        spent = sum(sum(process.cpu_times()[:2]) for process in web)
        memory = sum(process.memory_full_info().pss for process in web)
        for writer in writers:
            writer.join()
        report(taken, told, failures, log.read_text())
        cores = spent / (FIRST_SECONDS + SECONDS)
        print(f"{len(web)} web processes: {cores:.2f} cores, {memory / 1e6:.0f} MB (PSS)")


def report(taken: list[Taken], told: Counter[str], failures: Queue[str], log: str) -> None:
    from django.db import connection

    print(f"{connection.vendor}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {SECONDS} s")
    first = min(page.begin for page in taken) + FIRST_SECONDS
    for label, pages_then in (
        (f"first {FIRST_SECONDS:.0f} s", [page for page in taken if page.begin < first]),
        ("then", [page for page in taken if page.begin >= first]),
    ):
        answered = [1000 * page.seconds for page in pages_then if page.status == 200]
        if len(answered) > 1:
            cuts = statistics.quantiles(answered, n=20)
            print(
                f"{label}: {len(answered)} pages, median {cuts[9]:.0f} ms, p95 {cuts[18]:.0f} ms (goal 300)"
            )
        print("status:", dict(Counter(page.status for page in pages_then)))
    print(f"{STREAMS} streams:", dict(told))
    failed = []
    while not failures.empty():
        failed.append(failures.get())
    print(f"'{LOCKED}': {log.count(LOCKED)} times in the web log; failed writes: {dict(Counter(failed))}")


if __name__ == "__main__":
    main()
