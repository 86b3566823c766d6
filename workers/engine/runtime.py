"""The process's environment: threads, device, number format, versions, memory.

`prepare_environment` must run before torch is imported; nothing here imports torch at module level.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from workers.contract.errors import Stopped
from workers.contract.events import ShouldStop

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "graftworks")
# bfloat16 must win clearly, so that a busy moment on the machine does not change the choice.
BFLOAT16_GAIN = 1.2
CGROUP = Path("/sys/fs/cgroup")  # of a container


def stop_if_asked(should_stop: ShouldStop) -> None:
    """Raise Stopped if `should_stop` returns a reason."""
    reason = should_stop()
    if reason:
        raise Stopped(reason)


def thread_count() -> int:
    """Return OMP_NUM_THREADS if it is set, else the cores of this process less one for the web process."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else max(1, _usable_cores() - 1)


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def prepare_environment(*, offline: bool, in_4bit: bool = False) -> None:
    """Set what torch, OpenMP and the hub client read once, at import."""
    if not in_4bit:
        # PEFT imports it whenever it is installed, which costs each job one second and 50 MB.
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    os.environ["OMP_NUM_THREADS"] = str(thread_count())
    # A waiting OpenMP thread that spins starves the web process on the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


@functools.cache
def versions() -> dict[str, str]:
    """Return the installed versions from package metadata, without importing the packages."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a checkout that is not installed has no version of its own
    return installed


def pick_device() -> torch.device:
    """Return the first CUDA device, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    # It prepares itself for hundreds of milliseconds for each new length of rows, and each step has new ones.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda", 0)


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator that dropout on this device uses, uint8 on the CPU."""
    import torch

    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Restore what `random_state` returned."""
    import torch

    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)


def device_name(device: torch.device) -> str:
    """Return `cpu`, or `cuda` with the card's name."""
    import torch

    return "cpu" if device.type == "cpu" else f"cuda ({torch.cuda.get_device_name(device)})"


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the base model's number format; `auto` picks bfloat16 only if it is faster on this machine."""
    import torch

    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    full, half = _gemm_seconds(torch.float32), _gemm_seconds(torch.bfloat16)
    return torch.bfloat16 if full > BFLOAT16_GAIN * half else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Return the number format's name in specs, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _gemm_seconds(dtype: torch.dtype) -> float:
    """Return the best of eight times of 256 rows through [1536, 576], a small model's feed-forward layer."""
    import torch

    from workers.engine.frozen_products import frozen_product

    x, weight = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        frozen_product(x, weight)
        best = min(best, time.perf_counter() - start)
    return best


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from now, on systems that support it."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # proc(5): 5 resets the peak resident set size to the present one.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def available_bytes(device: torch.device) -> int:
    """Return the bytes that may still be taken: on the card, else on the machine and in the control group."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # without a limit
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        kinds = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # The kernel takes pages of files back.
        available = max(0, min(available, limit - used + int(kinds["inactive_file"])))
    return available


def resident_bytes(device: torch.device) -> int:
    """Return the memory that this process holds now: on the card with CUDA, else resident."""
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_reserved(device)
    resident: int = psutil.Process().memory_info().rss
    return resident


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """Return the peak memory: allocated on the card with CUDA, else resident in this process."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # `ru_maxrss` starts with the peak of the process that this one was forked from.
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
