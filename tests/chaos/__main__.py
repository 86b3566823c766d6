"""Fault injection into an installation: `python -m tests.chaos --jobs 500 --kills 200 --pauses 20 --seed 1`.

Starts `manage.py start` on loopback in a folder of its own, submits short trainings of a tiny model over the
API, kills and pauses the installation's own processes by a seeded schedule, waits until every job has ended,
and then checks the invariants. Prints a table of violations; the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tests.proxy import Proxy

ROOT = Path(__file__).parents[2]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=500, help="trainings to submit")
    parser.add_argument("--kills", type=int, default=200, help="processes to kill with SIGKILL")
    parser.add_argument("--pauses", type=int, default=20, help="processes to stop and continue")
    parser.add_argument("--pause-seconds", type=float, default=120.0, help="duration of each pause")
    parser.add_argument("--outages", type=int, default=0, help="outages of PostgreSQL")
    parser.add_argument("--outage-seconds", type=float, default=60.0, help="duration of each outage")
    parser.add_argument("--silences", type=int, default=0, help="periods without answers from the broker")
    parser.add_argument("--silence-seconds", type=float, default=300.0, help="duration of each silence")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same schedule")
    parser.add_argument("--nodes", type=int, default=2, help="training nodes of the installation")
    parser.add_argument("--recoveries", type=int, default=0, help="measure the recovery time of single kills")
    parser.add_argument("--elsewhere", type=int, default=0, help="measure that of killed hosts")
    parser.add_argument("--stops", type=int, default=0, help="measure the time that a stop takes")
    parser.add_argument("--minutes", type=float, default=600.0, help="time limit of the storm")
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="clean up after the stop instead of waiting for the dispatcher to do it (up to 200 s)",
    )
    parser.add_argument(
        "--database-url",
        default=os.environ.get("TEST_DATABASE_URL"),
        help="an empty PostgreSQL database, as `python -m tests.servers` makes one; default: SQLite",
    )
    parser.add_argument("--model", type=Path, help="the bundled base model; default: a tiny one is built")
    parser.add_argument("--keep", action="store_true", help="keep the data folder and print its path")
    options = parser.parse_args()
    if (options.outages or options.silences) and not options.database_url:
        parser.error("outages and silences need servers: run it under `python -m tests.servers`")
    return options


def main() -> int:
    """Prepare the environment before Django reads it, run, and return the exit status."""
    options = parse_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix="graftworks-chaos-", dir="/tmp"))
    try:
        model = options.model or folder / "tiny"
        os.environ.update(environment(folder, model, options.database_url, options.nodes))
        if not options.model:
            build_tiny_model(model)
        import django

        django.setup()
        from tests.chaos import recovery, run

        is_measurement = options.recoveries or options.elsewhere or options.stops
        execute = recovery.run if is_measurement else run.run
        with server_broker(folder) as broker, server_proxies() as proxies:
            return execute(options, folder, broker, proxies)
    finally:
        if options.keep:
            print(f"The data folder is {folder}.")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path, model: Path, database_url: str | None, nodes: int) -> dict[str, str]:
    """Return the settings of the installation and of this process. Each device makes a training node."""
    from tests.servers import free_port

    for name in ("DATABASE_URL", "REDIS_URL", "PUBLIC_URL", "STATIC_MANIFEST", "SECRET_KEY"):
        os.environ.pop(name, None)
    shared = {
        "DJANGO_SETTINGS_MODULE": "dashboard.settings",
        "HOME": str(folder),
        "PORT": str(free_port()),
        "DATA_DIR": str(folder / "data"),
        "BUNDLED_MODEL_DIR": str(model),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(nodes))),
        "OMP_NUM_THREADS": "1",
        "ENGINE_THREADS": "1",
        "API_READS_PER_MINUTE": "1000000",
        "API_WRITES_PER_MINUTE": "1000000",
        "EMAIL_URL": "memorymail://",
    }
    if database_url:
        shared |= {"DATABASE_URL": database_url, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    return shared


def build_tiny_model(folder: Path) -> None:
    """Build the base model in a child process, so that this one does not import torch."""
    build = "import sys, pathlib, tests.tiny_model as t; t.build_tiny_model(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(folder)], check=True, cwd=ROOT, timeout=300)


@contextlib.contextmanager
def server_proxies() -> Iterator[dict[str, Proxy]]:
    """Put a proxy before each server, by the name of its setting. This process connects directly."""
    addresses = {name: urlsplit(os.environ.get(name, "")) for name in ("DATABASE_URL", "REDIS_URL")}
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(Proxy(f"{address.hostname}:{address.port}"))
            for name, address in addresses.items()
            if address.port
        }


@contextlib.contextmanager
def server_broker(folder: Path) -> Iterator[object]:
    """Run Debian's broker beside PostgreSQL; yield None where `manage.py start` runs its own."""
    from django.conf import settings

    from tests.chaos.target import ServerBroker

    if not settings.REDIS_URL:
        yield None
        return
    broker = ServerBroker(folder / "broker", settings.REDIS_URL)
    try:
        yield broker
    finally:
        broker.close()


if __name__ == "__main__":
    sys.exit(main())
