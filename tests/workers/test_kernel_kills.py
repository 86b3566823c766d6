"""What Linux counts of its kills for lack of memory, in every arrangement of control groups."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from workers import kernel_kills
from workers.kernel_kills import Kills

PID = 77
UNIFIED = "35 24 0:30 / {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
OLD = "41 32 0:36 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,memory"
OTHER = "33 31 0:30 / {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose kernel has killed twice."""
    for folder in ("proc/self", f"proc/{PID}"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\noom_kill 2\n")
    monkeypatch.setattr(kernel_kills, "PROC", tmp_path / "proc")
    return tmp_path


def place(machine: Path, groups: str, *mounts: str) -> None:
    """Put the process into its groups, and mount what shows them."""
    (machine / f"proc/{PID}/cgroup").write_text(groups)
    (machine / "proc/self/mountinfo").write_text("".join(f"{mount}\n" for mount in mounts))


def count_in(file: Path, kills: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"low 0\noom 4\noom_kill {kills}\noom_group_kill 0\n")
    return file


def test_it_reads_the_count_of_the_processes_own_group(machine: Path) -> None:
    point = machine / "cgroup"
    own = count_in(point / "system.slice/graftworks.service/memory.events", 1)
    place(machine, "0::/system.slice/graftworks.service\n", UNIFIED.format(point=point))
    kills = Kills.around(PID)
    assert (kills.file, kills.is_own, kills.before) == (own, True, 1)


def test_it_reads_groups_of_the_first_version(machine: Path) -> None:
    memory, cpu, unified = machine / "cgroup/memory", machine / "cgroup/cpu", machine / "cgroup/unified"
    own = count_in(memory / "jobs/one/memory.oom_control", 0)
    mounts = (
        OTHER.format(point=cpu),
        UNIFIED.format(point=unified),
        OLD.format(root="/", point=memory),
    )
    place(machine, "4:memory:/jobs/one\n1:cpu,cpuacct:/\n0::/\n", *mounts)
    assert (Kills.around(PID).file, Kills.around(PID).is_own) == (own, True)


def test_it_finds_the_group_of_a_container_that_shows_only_its_own_part(machine: Path) -> None:
    memory = machine / "cgroup/memory"
    own = count_in(memory / "memory.oom_control", 0)
    place(machine, "4:memory:/docker/3f2a\n", OLD.format(root="/docker/3f2a", point=memory))
    assert Kills.around(PID).file == own


@pytest.mark.parametrize(
    ("groups", "root"),
    [("4:memory:/elsewhere\n", "/docker/3f2a"), ("0::/../beside\n", "/"), ("nonsense\n", "/")],
)
def test_it_takes_the_machines_count_where_no_group_is_to_be_seen(
    machine: Path, groups: str, root: str
) -> None:
    mounts = (UNIFIED.format(point=machine / "none"), OLD.format(root=root, point=machine / "none"))
    place(machine, groups, *mounts)
    kills = Kills.around(PID)
    assert (kills.file, kills.is_own, kills.before) == (machine / "proc/vmstat", False, 2)


def own_kills(machine: Path) -> tuple[Kills, Path]:
    own = count_in(machine / "cgroup/memory.events", 1)
    place(machine, "0::/\n", UNIFIED.format(point=machine / "cgroup"))
    return Kills.around(PID), own


def test_its_own_groups_count_is_proof(machine: Path) -> None:
    kills, own = own_kills(machine)
    count_in(own, 2)
    assert kills.blame is True


def test_a_count_that_stands_still_is_proof_of_the_contrary(machine: Path) -> None:
    kills, _own = own_kills(machine)
    assert kills.blame is False


def test_the_machines_count_proves_only_the_contrary(machine: Path) -> None:
    quiet, moved = Kills.around(PID), Kills.around(PID)
    assert quiet.blame is False
    (machine / "proc/vmstat").write_text("oom_kill 3\n")
    assert moved.blame is None


def test_without_any_count_nobody_can_say(machine: Path) -> None:
    (machine / "proc/vmstat").write_text("nr_free_pages 5\n")
    assert Kills.around(PID).blame is None


def test_a_kill_long_before_its_death_was_not_its_own(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills, own = own_kills(machine)
    count_in(own, 2)
    for _minute in range(2):
        kills.looked -= kernel_kills.DEATH_SECONDS
        kills.look()
    assert kills.blame is False


def test_a_large_process_takes_its_time_to_die(machine: Path) -> None:
    kills, own = own_kills(machine)
    count_in(own, 2)
    kills.looked -= kernel_kills.DEATH_SECONDS
    kills.look()
    kills.look()
    assert kills.blame is True


def test_a_kill_after_its_death_was_not_its_own(machine: Path) -> None:
    kills, own = own_kills(machine)
    kills.close()
    count_in(own, 2)
    kills.looked -= kernel_kills.DEATH_SECONDS
    kills.look()
    assert kills.blame is False


def test_this_machine_counts_somewhere() -> None:
    process = subprocess.Popen(["sleep", "60"])
    kills = Kills.around(process.pid)
    process.kill()
    process.wait()
    if not Path("/proc/vmstat").exists() or "oom_kill" not in Path("/proc/vmstat").read_text():
        pytest.skip("this kernel counts no kills")
    assert kills.blame is False, (os.uname(), kills)
