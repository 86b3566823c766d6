"""The installation that the storm hits: its processes by role, and how they are killed and paused.

Touches only descendants of the `manage.py start` that it has started, and the broker of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests import servers
from tests.e2e.installation import Installation, launch
from tests.proxy import Proxy

ROLES = ("worker", "pool", "trainer", "broker", "web", "dispatcher")
STOP_SECONDS = 180


class ServerBroker:
    """Debian's Valkey or Redis on one port; comes back empty after a kill."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.port = folder, urlsplit(url).port or 0
        self.stack = ExitStack()
        # It dies with the thread that started it, so that is one which lasts, not the one that kills.
        self.starter = ThreadPoolExecutor(max_workers=1)
        self.restart()

    def restart(self) -> None:
        """A new process on the same port."""
        self.starter.submit(self._restart).result()

    def _restart(self) -> None:
        self.stack.close()
        self.process = self.stack.enter_context(servers.broker(self.folder, self.port))

    def close(self) -> None:
        """No broker any more."""
        self.stack.close()
        self.starter.shutdown()


class Stage:
    """A running installation seen as processes."""

    def __init__(self, folder: Path, broker: ServerBroker | None, lines: dict[str, Proxy]) -> None:
        self.folder, self.broker, self.lines = folder, broker, lines
        environment = dict(os.environ)
        for name, proxy in lines.items():
            straight = urlsplit(environment[name])
            environment[name] = environment[name].replace(f":{straight.port}/", f":{proxy.port}/")
        self.installation: Installation = launch(environment, folder / "start.log")
        self.launcher = psutil.Process(self.installation.process.pid)

    def family(self) -> list[psutil.Process]:
        """Everything that the launcher keeps alive."""
        with contextlib.suppress(psutil.Error):
            return self.launcher.children(recursive=True)
        return []

    def processes(self, role: str) -> list[psutil.Process]:
        """Those of one role that run now, oldest first."""
        if role == "broker" and self.broker:
            return [psutil.Process(self.broker.process.pid)]
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if self._role(process) == role and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _role(self, process: psutil.Process) -> str:
        command = " ".join(process.cmdline())
        if "workers.engine" in command:
            return "trainer"
        if "workers.celery" in command:
            return "worker" if process.ppid() == self.launcher.pid else "pool"
        if "dashboard.asgi" in command:
            return "web"
        if "manage.py dispatch" in command:
            return "dispatcher"
        return "broker" if "valkey" in command else "other"

    def strays(self) -> list[psutil.Process]:
        """Processes of this data folder, by their command or their environment, that belong to nobody."""
        known = {process.pid for process in self.family()} | {os.getpid(), self.launcher.pid}
        if self.broker:
            known.add(self.broker.process.pid)
        data, found = str(self.folder / "data"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid in known or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if data in " ".join(process.cmdline()) or process.environ().get("DATA_DIR") == data:
                    found.append(process)
        return found

    def stop(self) -> int:
        """As people stop it; the exit status."""
        self.installation.process.send_signal(signal.SIGTERM)
        try:
            return self.installation.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.installation.process.kill()
            return -signal.SIGKILL

    def kill_all(self) -> None:
        """For when the harness itself fails."""
        family = self.family()
        for process in [*family, *self.strays()]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self.installation.process.poll() is None:
            self.installation.process.kill()
