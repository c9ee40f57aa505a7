"""Where a run happens: versions, machine, commit, and the signals that ask it to stop."""

import ctypes
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

PACKAGES = ("eat-runner", "torch", "torchvision", "timm", "numpy", "hydra-core")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
LONGEST_GRACE_S = 600.0  # between a cluster's SIGTERM and its SIGKILL
# a cluster's, heeded where somebody listens: submitit requeues the job then
CLUSTER_SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


@cache
def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a result depends on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = None
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """The processor that training ran on, without the machine's name."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "accelerator": accelerator,
    }


@cache
def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@cache
def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, ``+changes`` where its source differs; None for an installed
    package."""
    here = Path(__file__).resolve()
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        commit = _git(here.parent, "rev-parse", "HEAD").strip()
        return commit + ("+changes" if _git(here.parent, "status", "--porcelain", "--", ".").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than float32: a GPU that torch says supports it, or AVX512_BF16. Other
    processors count as without, since nothing was measured on them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return device.type == "cpu" and supported()


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory in the process: a training step on the CPU frees and takes the same tensors again
    and again, and the page faults cost up to a third of it. Elsewhere this does nothing."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@contextmanager
def stop_signals() -> Generator[Callable[[], bool]]:
    """Within the block SIGINT and SIGTERM only note that somebody wants to stop; the yielded function tells.

    So do SIGUSR1 and SIGUSR2 where they have a handler, which is called after the block: there is a checkpoint then.
    After a SIGTERM a job of SLURM's waits there for its end, since only a job that is still there is requeued.
    A second SIGINT interrupts at once. Outside of the main thread signals are left alone.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: bool(noted)
        return

    def note(number: int, frame: FrameType | None) -> None:
        handler = before[number]
        if noted and number == signal.SIGINT and callable(handler):
            handler(number, frame)
        noted.append(number)

    listened_to = [number for number in CLUSTER_SIGNALS if callable(signal.getsignal(number))]
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, *listened_to)}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in listened_to:
            if number in noted:
                signal.raise_signal(number)
        if signal.SIGTERM in noted and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            time.sleep(LONGEST_GRACE_S)
