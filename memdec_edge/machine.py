"""What the machine offers to this process: CPUs and memory. Knows nothing of the work that needs them."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # version 2, where containers and services of Linux have their limits
OF_THIS_PROCESS = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")


def usable_cpus() -> int:
    """CPUs that this process may use at a time, at least 1: its affinity, and the quota of its cgroups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups():
        quota, period = (_read(folder / "cpu.max") or "max 1").split()
        if quota != "max":
            allowed = min(allowed, math.ceil(int(quota) / int(period)))
    return max(1, allowed)


def free_memory() -> int | None:
    """Bytes that this process may still take without swapping, its cgroups considered; None where Linux is not."""
    free = _number(_read(MEMORY), "MemAvailable:")
    if free is None:
        return None
    free *= 1024
    for folder in _cgroups():
        most, used = _read(folder / "memory.max"), _read(folder / "memory.current")
        if most and used and most != "max":
            reclaimable = _number(_read(folder / "memory.stat"), "inactive_file") or 0
            free = min(free, max(0, int(most) - int(used) + reclaimable))
    return free


def _number(text: str | None, name: str) -> int | None:
    """The number after `name` in a file of such lines."""
    found = (line.split() for line in (text or "").splitlines())
    return next((int(words[1]) for words in found if len(words) > 1 and words[0] == name), None)


def _cgroups() -> Iterator[Path]:
    """The cgroup of this process and those above it; each limits all below."""
    for line in (_read(OF_THIS_PROCESS) or "").splitlines():
        if line.startswith("0::"):
            own = CGROUPS / line.removeprefix("0::").lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(CGROUPS))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
