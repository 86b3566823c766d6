"""The installation that faults are injected into: its processes by role.

Touches only descendants of the `manage.py start` that it has started, and its own broker.
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

STOP_SECONDS = 180


class ServerBroker:
    """Debian's Valkey or Redis on one port; empty after each restart."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.port = folder, urlsplit(url).port or 0
        self.stack = ExitStack()
        # The broker dies with the thread that started it, so that thread must outlive the injector's.
        self.starter = ThreadPoolExecutor(max_workers=1)
        self.restart()

    def restart(self) -> None:
        self.starter.submit(self._restart).result()

    def _restart(self) -> None:
        self.stack.close()
        self.process = self.stack.enter_context(servers.broker(self.folder, self.port))

    def close(self) -> None:
        self.stack.close()
        self.starter.shutdown()


class Target:
    """A running installation as a set of processes."""

    def __init__(self, folder: Path, broker: ServerBroker | None, proxies: dict[str, Proxy]) -> None:
        self.folder, self.broker, self.proxies = folder, broker, proxies
        environment = dict(os.environ)
        for name, proxy in proxies.items():
            port = urlsplit(environment[name]).port
            environment[name] = environment[name].replace(f":{port}/", f":{proxy.port}/")
        self.installation: Installation = launch(environment, folder / "start.log")
        self.launcher = psutil.Process(self.installation.process.pid)

    def descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return self.launcher.children(recursive=True)
        return []

    def processes(self, role: str) -> list[psutil.Process]:
        """Return the running processes of a role, oldest first."""
        if role == "broker" and self.broker:
            return [psutil.Process(self.broker.process.pid)]
        running = []
        for process in self.descendants():
            with contextlib.suppress(psutil.Error):
                if self._role(process) == role and process.status() != psutil.STATUS_ZOMBIE:
                    running.append(process)
        return running

    def _role(self, process: psutil.Process) -> str:
        command = " ".join(process.cmdline())
        if "workers.engine.fork_server" in command:
            return "fork server"
        if "workers.engine" in command:
            return "trainer"
        # The launcher names its programs; the processes of a node's pool inherit its name.
        program = process.name().removeprefix("gw-").rstrip("0123456789")
        if program in ("cpu", "gpu", "serve"):
            return "worker" if process.ppid() == self.launcher.pid else "pool"
        return {"web": "web", "dispatch": "dispatcher"}.get(
            program, "broker" if "valkey" in command else "other"
        )

    def orphans(self) -> list[psutil.Process]:
        """Return processes of this data folder that are no descendants of the launcher."""
        known = {process.pid for process in self.descendants()} | {os.getpid(), self.launcher.pid}
        if self.broker:
            known.add(self.broker.process.pid)
        data, orphans = str(self.folder / "data"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid in known or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if data in " ".join(process.cmdline()) or process.environ().get("DATA_DIR") == data:
                    orphans.append(process)
        return orphans

    def stop(self) -> int:
        """Stop the installation with SIGTERM and return its exit status."""
        self.installation.process.send_signal(signal.SIGTERM)
        try:
            return self.installation.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.installation.process.kill()
            return -signal.SIGKILL

    def kill_all(self) -> None:
        """Kill what is left when the experiment itself fails."""
        for process in [*self.descendants(), *self.orphans()]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self.installation.process.poll() is None:
            self.installation.process.kill()
