"""What the process runs on: threads, device, number format, versions, memory.

`prepare_environment` must run before torch is imported; nothing here imports torch at module level.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from workers.errors import Stopped
from workers.events import ShouldStop

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "graftworks")
# bfloat16 must win clearly, so that a busy moment on the machine does not change the choice.
BFLOAT16_GAIN = 1.2


def stop_if_asked(should_stop: ShouldStop) -> None:
    """Raise `Stopped` when somebody asked for it."""
    reason = should_stop()
    if reason:
        raise Stopped(reason)


def thread_count() -> int:
    """OMP_NUM_THREADS when it is set, else the cores this process may use, less one for the web process."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else max(1, _usable_cores() - 1)


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def prepare_environment(*, offline: bool, in_4bit: bool = False) -> None:
    """Set what torch, OpenMP and the hub client read once, when they are loaded."""
    if not in_4bit:
        # Where it is installed PEFT loads it always: a second and 50 MB of each job that has no use for it.
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    os.environ["OMP_NUM_THREADS"] = str(thread_count())
    # A waiting OpenMP thread that spins starves the web process on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def versions() -> dict[str, str]:
    """Installed versions, read from package metadata: no import is paid for it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a checkout that is not installed has no version of its own
    return found


def pick_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def random_state(device: torch.device) -> torch.Tensor:
    """State of the generator that dropout on this device draws from, uint8 on the CPU."""
    import torch

    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """The counterpart of `random_state`."""
    import torch

    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)


def device_name(device: torch.device) -> str:
    """`cpu`, or `cuda` with the card's name."""
    import torch

    return "cpu" if device.type == "cpu" else f"cuda ({torch.cuda.get_device_name(device)})"


def pick_dtype(asked: str, device: torch.device) -> torch.dtype:
    """The base model's number format; `auto` takes bfloat16 only where it is faster on this machine."""
    import torch

    if asked != "auto":
        return torch.bfloat16 if asked == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    plain, half = _gemm_seconds(torch.float32), _gemm_seconds(torch.bfloat16)
    return torch.bfloat16 if plain > BFLOAT16_GAIN * half else torch.float32


def _gemm_seconds(dtype: torch.dtype) -> float:
    """Best of eight: [256, 576] x [576, 1536], the shape of a small model's feed-forward layer."""
    import torch

    left, right = torch.ones(256, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return best


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from now; where the system cannot, it goes on counting from the start."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux's own way to set a process's resident peak back to what it holds now (proc(5)).
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """The most memory so far: of the card on CUDA, else of this process (resident)."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
