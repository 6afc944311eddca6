"""Bytes that are free, asked before anything large is made: a number in an error, rather than a machine that swaps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from pruning.errors import ScoreError


def available_bytes(device: torch.device) -> int | None:
    """Free bytes of a CUDA device, with what torch holds there unused, or of this machine's memory; None where the
    system does not say.
    """
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        return min([free, *_left_of_group()])
    except (OSError, StopIteration):
        names = getattr(os, "sysconf_names", {})
        known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None


def _left_of_group() -> list[int]:
    """Bytes that the limits of this process's control groups leave, as in a container or a job of SLURM; [] without."""
    found = []
    for limit, used, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _folders():
            try:
                most, now = ((folder / name).read_text().strip() for name in (limit, used))
                lines = (folder / "memory.stat").read_text().splitlines()
            except OSError:
                continue
            if most != "max":  # the files that it has read can be let go of
                kept = next((int(line.split()[1]) for line in lines if line.startswith(f"{inactive} ")), 0)
                found.append(max(0, int(most) - int(now) + kept))
    return found


def _folders() -> Iterator[Path]:
    """Folders of the control groups of this process, and of those around them."""
    root = Path("/sys/fs/cgroup")
    yield from (root, root / "memory")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, place = line.split(":", 2)
        if kinds in ("", "memory"):
            inner = (root / "memory" if kinds else root) / place.strip("/")
            yield from (folder for folder in (inner, *inner.parents) if root in folder.parents)


def check_bytes(what: str, wanted: float, device: torch.device, fix: str) -> None:
    """Raise `ScoreError`, which names both numbers and `fix`, if `what` needs more bytes than are free on `device`."""
    free = available_bytes(device)
    if free is not None and wanted > free:
        raise ScoreError(f"{what}: needs {written_bytes(wanted)}, and {written_bytes(free)} are free: {fix}")


def written_bytes(count: float) -> str:
    """ "3.2 GB", in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.1f} {unit}" if unit != "bytes" else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError("the last unit returns")
