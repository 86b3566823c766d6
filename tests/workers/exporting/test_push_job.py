"""A push from its row to a hub on loopback, with a real engine; and where its token is not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command

from dashboard.models import Adapter, HubPush, Job, State, TrainingRun, User
from tests.hub import TOKEN, Hub, hub
from tests.workers.conftest import claim, run_until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub at the address that the operator has set."""
    with hub() as started:
        monkeypatch.setenv("HF_ENDPOINT", started.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield started


@pytest.fixture
def adapter(run: TrainingRun) -> Adapter:
    """An adapter whose files no engine wrote."""
    path = Path(settings.DATA_DIR) / "adapters" / ("ab" * 32)
    path.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (path / name).write_bytes(bytes(10_000))
    files = dict.fromkeys(("adapter_config.json", "adapter_model.safetensors"), "cd" * 32)
    return Adapter.objects.publish(run, path.name, files, 10)


def start(adapter: Adapter, by: User, format: str = "adapter", **values: object) -> HubPush:
    options: dict[str, object] = {"repository": "team/triage", "token": TOKEN} | values
    return HubPush.objects.start(adapter, by, format=format, **options)  # type: ignore[arg-type]


def files_below(folder: Path) -> bytes:
    """Return the content of all files of the installation, its database included.

    Another process reads them: SQLite loses its locks in a process that closes a file of the database.
    """
    command = ["find", str(folder), "-type", "f", "-exec", "cat", "{}", "+"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def test_pushes_reach_the_hub_and_leave_no_token(
    adapter: Adapter, mara: User, remote: Hub, tmp_path: Path, unforked_engines: None
) -> None:
    push = start(adapter, mara)
    assert TOKEN not in push.sealed_token
    assert HubPush.objects.token_of(push.job) == TOKEN
    seen: list[bytes] = []
    remote.hold.clear()
    job = claim("cpu")

    def look() -> None:
        pid = Job.objects.get(pk=job.pk).child_pid
        seen.extend(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
        remote.hold.set()

    ended = run_until(job, lambda: any(path.startswith("PUT") for path in remote.paths), look)
    assert ended.state == State.SUCCEEDED, ended.log_tail()
    assert remote.private == {"team/triage": True}
    assert set(remote.files["team/triage"]) == set(adapter.files)
    weights = (adapter.path() / "adapter_model.safetensors").read_bytes()
    assert remote.files["team/triage"]["adapter_model.safetensors"] == weights
    push.refresh_from_db()
    assert push.url == f"{remote.url}/team/triage"
    assert len(push.commit) == 40
    assert push.sealed_token == ""
    dump = tmp_path / "dump.json"
    call_command("dumpdata", "dashboard", output=str(dump), verbosity=0)
    assert "team/triage" in dump.read_text()
    everything = [*seen, files_below(Path(settings.DATA_DIR)), dump.read_bytes()]
    assert not any(TOKEN.encode() in content for content in everything)


def test_a_stopped_push_loses_its_token(adapter: Adapter, mara: User) -> None:
    push = start(adapter, mara)
    push.job.request_cancel(mara)
    push.refresh_from_db()
    assert (push.job.state, push.sealed_token) == (State.CANCELLED, "")
